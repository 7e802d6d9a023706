"""What the kernel's audit says of a denial. The records are a Debian 13's, with SELinux."""

from profiler.kernel.audit import parsed
from profiler.model import LabelDenial, Process

CONTAINER = "system_u:system_r:container_t:s0:c523,c980"
HEAD = "audit: type=1400 audit(1795547338.175:14): "


def test_a_capability_and_nobody_s_file():
    text = (
        'avc:  denied  { sys_admin } for  pid=948 comm="mount" capability=21  '
        f"scontext={CONTAINER} tcontext={CONTAINER} tclass=capability permissive=0"
    )
    assert list(parsed(HEAD + text)) == [
        LabelDenial(("sys_admin",), "capability", CONTAINER, CONTAINER, None, Process(948, "mount"))
    ]


def test_a_file_by_its_name():
    text = (
        'avc:  denied  { read write } for  pid=2767 comm="cat" name="f" dev="vda" ino=131689 '
        f"scontext={CONTAINER} tcontext=unconfined_u:object_r:var_t:s0 tclass=file permissive=0"
    )
    (denial,) = parsed(HEAD + text)
    assert denial.permissions == ("read", "write")
    assert (denial.tclass, denial.tcontext) == ("file", "unconfined_u:object_r:var_t:s0")
    assert (denial.path, denial.process) == ("f", Process(2767, "cat"))


def test_a_path_is_preferred_and_odd_characters_come_in_hexadecimal():
    text = (
        "avc:  denied  { write } for  pid=574 comm=6D792070726F67 path=2F746D702F6120FF "
        f'name="a" scontext={CONTAINER} tcontext=system_u:object_r:tmp_t:s0 tclass=file permissive=0'
    )
    (denial,) = parsed(HEAD + text)
    assert denial.process.exe == "my prog"
    assert denial.path == "/tmp/a \udcff"


def test_what_was_only_noted_or_granted_is_none():
    end = f"scontext={CONTAINER} tcontext={CONTAINER} tclass=process permissive="
    assert not list(parsed(f'{HEAD}avc:  denied  {{ ptrace }} for  pid=1 comm="a" {end}1'))
    assert not list(parsed(f'{HEAD}avc:  granted  {{ ptrace }} for  pid=1 comm="a" {end}0'))
    assert not list(parsed("audit: type=1300 audit(1795547338.175:14): arch=c000003e syscall=257"))
