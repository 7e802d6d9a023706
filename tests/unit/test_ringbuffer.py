"""Pages, formats, stacks and the pairing of kretprobes: everything of the witness that needs no kernel."""

import struct

import pytest

from profiler.witness.events import (
    Accounting,
    Check,
    Classifier,
    Decoder,
    Exec,
    Exit,
    Fork,
    Formats,
    TaskExit,
)
from profiler.witness.instance import probe_group
from profiler.witness.ringbuffer import (
    MISSED_EVENTS,
    MISSED_STORED,
    Field,
    PageLayout,
    missed,
    parse_format,
    parse_header_page,
    records,
)
from profiler.witness.stacks import StackInfo, call_of, classify, kernel_name
from profiler.witness.symbols import Symbols, parse_kallsyms, plain

LAYOUT = PageLayout(timestamp=0, commit=8, data=16, size=4096)
COMMON = """\
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

"""


def format_of(number, *fields):
    lines = "".join(f"\tfield:{kind};\toffset:{at};\tsize:{size};\tsigned:{sign};\n" for kind, at, size, sign in fields)
    return parse_format(f'name: x\nID: {number}\nformat:\n{COMMON}{lines}\nprint fmt: "field:no;"\n')


STACK = format_of(4, ("int size", 8, 4, 1), ("unsigned long caller[8]", 16, 64, 0))
CHECK = format_of(
    100,
    ("const struct cred * cred", 8, 8, 0),
    ("struct user_namespace * target_ns", 16, 8, 0),
    ("const struct user_namespace * capable_ns", 24, 8, 0),
    ("int cap", 32, 4, 1),
    ("int ret", 36, 4, 1),
)
KPROBE = format_of(
    101,
    ("unsigned long __probe_ip", 8, 8, 0),
    ("u64 cred", 16, 8, 0),
    ("u64 target_ns", 24, 8, 0),
    ("s32 cap", 32, 4, 1),
    ("u32 opts", 36, 4, 0),
)
ANSWER = format_of(
    102,
    ("unsigned long __probe_func", 8, 8, 0),
    ("unsigned long __probe_ret_ip", 16, 8, 0),
    ("s32 ret", 24, 4, 1),
)
OWN = format_of(107, ("unsigned long __probe_ip", 8, 8, 0), ("u64 cred", 16, 8, 0))
EXIT = format_of(103, ("int __syscall_nr", 8, 4, 1), ("long ret", 16, 8, 1))
NEWTASK = format_of(
    104, ("pid_t pid", 8, 4, 1), ("char comm[16]", 12, 16, 0), ("u64 clone_flags", 32, 8, 0), ("short x", 40, 2, 1)
)
EXEC = format_of(105, ("__data_loc char[] filename", 8, 4, 0), ("pid_t pid", 12, 4, 1), ("pid_t old_pid", 16, 4, 1))
GONE = format_of(106, ("char comm[16]", 8, 16, 0), ("pid_t pid", 24, 4, 1))


def page_of(*entries, stamp=1000, flags=0):
    data = b"".join(entries)
    return (struct.pack("<QQ", stamp, len(data) | flags) + data).ljust(LAYOUT.size, b"\0")


def small(data, delta=1):
    assert len(data) % 4 == 0 and len(data) <= 28 * 4
    return struct.pack("<I", len(data) // 4 | delta << 5) + data


def large(data, delta=1):
    return struct.pack("<II", delta << 5, len(data) + 4) + data


def check(pid, cap, ret=0, cred=0xC0, target=0xA0, held_in=0xA0):
    return small(struct.pack("<HBBiQQQii", CHECK.id, 0, 0, pid, cred, target, held_in, cap, ret))


def stack(pid, *addresses):
    return large(
        struct.pack("<HBBiii", STACK.id, 0, 0, pid, len(addresses), 0) + struct.pack(f"<{len(addresses)}Q", *addresses),
        0,
    )


STACKS = {
    number: ("cap_capable", "security_capable", *names.split())
    for number, names in {
        1: "capable_wrt_inode_uidgid setattr_prepare ext4_setattr __x64_sys_chown",
        2: "security_vm_enough_memory_mm __mmap_region __x64_sys_mmap",
        3: "generic_permission inode_permission ovl_permission __x64_sys_openat",
        4: "file_ns_capable __netlink_ns_capable rtnetlink_rcv_msg __x64_sys_sendto",
        5: "ns_capable __sys_setuid __x64_sys_setuid",
    }.items()
}


def decoder(check_format=CHECK, **more):
    asked = []

    def resolve(addresses):
        asked.append(addresses)
        return classify(STACKS[addresses[0]])

    made = Decoder(LAYOUT, Formats(stack=STACK, check=check_format, **more), resolve)
    return made, asked


def test_the_fields_of_a_format_keep_offset_size_and_sign():
    assert CHECK.id == 100
    assert CHECK.fields["ret"] == Field(36, 4, True)
    assert CHECK.fields["cred"] == Field(8, 8, False)
    assert STACK.fields["caller"] == Field(16, 64, False)
    assert EXEC.fields["filename"].offset == 8
    assert CHECK.unpacker("common_pid", "cap").unpack_from(check(7, 21)[4:]) == (7, 21)
    with pytest.raises(ValueError):
        parse_format("name: x\n")


def test_the_page_header_says_where_data_begins_and_how_large_a_page_is():
    text = (
        "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
        "\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
        "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
        "\tfield: char data;\toffset:16;\tsize:65520;\tsigned:0;\n"
    )
    assert parse_header_page(text) == PageLayout(0, 8, 16, 65536)


def test_times_add_up_over_deltas_extensions_stamps_and_padding():
    page = page_of(
        small(b"aaaa", 5),
        struct.pack("<II", 30 | 7 << 5, 2),  # TIME_EXTEND by (2 << 27) + 7
        large(b"b" * 120, 1),
        struct.pack("<III", 29 | 3 << 5, 8, 0),  # a discarded event of 12 bytes
        small(b"cccc", 1),
        struct.pack("<II", 31 | 9 << 5, 4),  # TIME_STAMP, absolute
        small(b"dddd", 2),
        struct.pack("<I", 29),  # the rest is padding
        small(b"eeee", 2),
    )
    extended = 1005 + (2 << 27) + 7 + 1
    absolute = (4 << 27) + 9
    assert [(time, page[start:end][:1]) for time, start, end in records(page, LAYOUT)] == [
        (1005, b"a"),
        (extended, b"b"),
        (extended + 4, b"c"),
        (absolute + 2, b"d"),
    ]


def test_an_absolute_stamp_takes_its_upper_bits_from_the_page():
    page = page_of(struct.pack("<II", 31, 1), small(b"aaaa", 0), stamp=(1 << 59) + 5)
    assert [time for time, _, _ in records(page, LAYOUT)] == [(1 << 59) + (1 << 27)]


def test_missed_events_are_counted_where_the_kernel_stored_their_number():
    assert missed(page_of(small(b"aaaa")), LAYOUT) == 0
    assert missed(page_of(small(b"aaaa"), flags=MISSED_EVENTS), LAYOUT) == 1
    page = bytearray(page_of(small(b"aaaa"), flags=MISSED_EVENTS | MISSED_STORED))
    page[24:32] = struct.pack("<Q", 77)
    assert missed(bytes(page), LAYOUT) == 77
    assert len(list(records(bytes(page), LAYOUT))) == 1


def test_a_check_is_joined_with_its_stack_also_across_pages_and_resolved_once():
    made, asked = decoder()
    raw = []
    made.page(0, page_of(check(7, 0), stack(7, 1), check(7, 0, ret=-1)), raw)
    made.page(1, page_of(check(8, 0)), raw)
    made.page(0, page_of(stack(7, 1)), raw)
    made.flush(raw)
    events = Classifier().classify(raw)
    assert [(event.pid, event.kind.check.granted, event.kind.check.site, event.kind.call) for event in events] == [
        (7, True, "setattr_prepare", "chown"),
        (7, False, "setattr_prepare", "chown"),
        (8, True, "?", None),
    ]
    assert events[0].kind.check.capability == "CHOWN"
    assert events[0].kind.check.stack == ("setattr_prepare", "ext4_setattr", "__x64_sys_chown")
    assert asked == [(1,)]
    assert made.stackless == 1


def test_equal_checks_share_one_kind():
    made, _ = decoder()
    raw = []
    made.page(0, page_of(*[check(7, 0), stack(7, 1)] * 3), raw)
    assert len({id(event.kind) for event in Classifier().classify(raw)}) == 1


def test_memory_accounting_is_only_counted():
    made, _ = decoder()
    raw = []
    made.page(0, page_of(*[check(7, 21), stack(7, 2)] * 5), raw)
    classifier = Classifier()
    assert classifier.classify(raw) == []
    count, info = made.accounted()
    assert count == 5
    event = classifier.accounting(1, count, info)
    assert isinstance(event, Accounting)
    assert event.kind.accounting and event.kind.check.site == "security_vm_enough_memory_mm"
    assert made.accounted()[0] == 0


def borrowed(*entries):
    made, _ = decoder()
    raw = []
    made.page(0, page_of(*entries), raw)
    return [event.kind.check.borrowed for event in Classifier().classify(raw) if isinstance(event, Check)]


def test_a_check_of_overlayfs_is_borrowed_when_it_is_not_the_tasks_own_credential():
    accounting = (check(7, 21, cred=0xC0), stack(7, 2))
    assert borrowed(*accounting, check(7, 2, cred=0xC9), stack(7, 3)) == [True]
    assert borrowed(*accounting, check(7, 2, cred=0xC0), stack(7, 3)) == [False]
    # the own one is not known yet, as in a program's first execve: the stack alone tells
    assert borrowed(check(7, 2, cred=0xC9), stack(7, 3)) == [True]


def test_an_openers_check_is_borrowed_unless_the_tasks_credentials_just_changed():
    accounting = (check(7, 21, cred=0xC0), stack(7, 2))
    opener = (check(7, 12, cred=0xC9), stack(7, 4))
    assert borrowed(*accounting, *opener) == [True]
    assert borrowed(*accounting, check(7, 7, cred=0xC0), stack(7, 5), *opener) == [False, False]


def test_a_check_against_another_user_namespace_is_foreign():
    made, _ = decoder()
    raw = []
    made.page(
        0, page_of(check(7, 21), stack(7, 2), check(7, 0, target=0xA9), stack(7, 1), check(7, 0), stack(7, 1)), raw
    )
    assert [event.kind.check.foreign_namespace for event in Classifier().classify(raw)] == [True, False]


def test_a_check_against_another_namespace_may_be_granted_from_above():
    made, _ = decoder()
    raw = []
    own, inner = check(7, 0, target=0xA9), check(7, 0, target=0xA9, held_in=0xA9)
    made.page(
        0, page_of(check(7, 21), stack(7, 2), own, stack(7, 1), inner, stack(7, 1), check(7, 0), stack(7, 1)), raw
    )
    checks = [event.kind.check for event in Classifier().classify(raw)]
    assert [(one.foreign_namespace, one.from_above) for one in checks] == [(True, True), (True, False), (False, False)]


def test_tasks_and_exits_are_decoded():
    made, _ = decoder(exits={"umount2": EXIT}, newtask=NEWTASK, exec=EXEC, gone=GONE)
    name = b"/bin/sh\0"
    entries = (
        small(struct.pack("<HBBii4xq", EXIT.id, 0, 0, 7, 166, -1)),
        small(struct.pack("<HBBii16s4xQh2x", NEWTASK.id, 0, 0, 7, 8, b"sh", 0x10000, 0)),
        small(struct.pack("<HBBiIii", EXEC.id, 0, 0, 8, 20 | len(name) << 16, 8, 9) + name),
        small(struct.pack("<HBBi16si", GONE.id, 0, 0, 8, b"sh", 8)),
        small(struct.pack("<HBBi", 999, 0, 0, 8)),
    )
    raw = []
    assert made.page(0, page_of(*entries), raw) == 1005
    assert Classifier().classify(raw) == [
        Exit(1001, 7, "umount2", -1),
        Fork(1002, 7, 8, True),
        Exec(1003, 8, 9, "/bin/sh"),
        TaskExit(1004, 8),
    ]


def entry(pid, cap, opts=0):
    return small(struct.pack("<HBBiQQQiI", KPROBE.id, 0, 0, pid, 0xFFFF, 0xC0, 0xA0, cap, opts))


def answer(pid, ret):
    return small(struct.pack("<HBBiQQi", ANSWER.id, 0, 0, pid, 1, 2, ret))


def test_a_kprobes_check_gets_its_answer_by_task():
    made, _ = decoder(KPROBE, answer=ANSWER)
    raw = []
    made.page(
        0,
        page_of(
            entry(7, 0), stack(7, 1), entry(8, 0, opts=2), stack(8, 1), answer(8, -1), answer(7, 0),
            entry(7, 21, opts=2), stack(7, 2), answer(7, 0),
            entry(9, 0), stack(9, 1), entry(9, 0), stack(9, 1), answer(9, 0),
        ),
        raw,
    )  # fmt: skip
    classifier = Classifier()
    found = [(event.pid, event.kind.check.granted, event.kind.audited) for event in classifier.classify(raw)]
    assert found == [(8, False, False), (7, True, True), (9, True, True)]
    assert classifier.unanswered == 1
    assert made.accounted()[0] == 1


def test_a_kprobe_on_the_commit_tells_the_tasks_own_credentials():
    made, _ = decoder(own=OWN)
    raw = []
    commit = small(struct.pack("<HBBiQQ", OWN.id, 0, 0, 7, 0x99, 0xC1))
    made.page(
        0,
        page_of(check(7, 7), stack(7, 5), commit, check(7, 12), stack(7, 4), check(7, 12, cred=0xC1), stack(7, 4)),
        raw,
    )
    checks = [event.kind.check for event in Classifier(0xA0).classify(raw)]
    assert [one.borrowed for one in checks] == [False, True, False]
    assert not any(one.foreign_namespace for one in checks)


def test_the_first_user_namespace_may_be_known_beforehand():
    made, _ = decoder()
    raw = []
    made.page(0, page_of(check(7, 0, target=0xA9), stack(7, 1), check(7, 0), stack(7, 1)), raw)
    checks = [event.kind.check for event in Classifier(0xA0).classify(raw)]
    assert [(one.foreign_namespace, one.from_above) for one in checks] == [(True, True), (False, False)]


def test_a_probe_group_is_a_c_identifier():
    assert probe_group("capprofile-12-345").isidentifier()


def test_compilers_suffixes_are_dropped():
    assert plain("rtnl_link_get_net_capable.constprop.0") == "rtnl_link_get_net_capable"
    assert plain("io_uring_setup.cold") == "io_uring_setup"
    assert plain("tty_ldisc_get.part.0.cold") == "tty_ldisc_get"
    assert plain("set_attr.isra.0.cold.12") == "set_attr"
    assert plain("chown") == "chown"


def test_symbols_leave_out_data_and_padding():
    text = "ffff0020 T second\nffff0010 t first [mod]\nffff0000 d data\nffff000f t __pfx_first\n"
    assert parse_kallsyms(text) == ([0xFFFF0010, 0xFFFF0020], ["first", "second"])


def test_a_return_address_behind_a_functions_last_instruction_is_still_in_it():
    symbols = Symbols()
    symbols._addresses, symbols._names = [0x10, 0x20], ["first", "second"]
    assert [symbols.name(address) for address in (0x11, 0x20, 0x21, 0x5)] == ["first", "first", "second", "0x5"]


@pytest.mark.parametrize(
    ("stack_", "call"),
    [
        ("setattr_prepare __x64_sys_fchownat x64_sys_call do_syscall_64", "fchownat"),
        ("vfs_statx __do_sys_newfstatat __x64_sys_newfstatat do_syscall_64", "newfstatat"),
        ("vfs_stat __x64_sys_newstat", "stat"),
        ("path_umount __x64_sys_umount do_syscall_64", "umount2"),
        ("x __ia32_compat_sys_ioctl do_int80_emulation", "ioctl"),
        ("__sys_setuid do_syscall_64 entry_SYSCALL_64_after_hwframe", "setuid"),
        ("io_openat2 io_issue_sqe io_wq_submit_work io_wq_worker ret_from_fork ret_from_fork_asm", None),
        ("", None),
    ],
)
def test_the_call_is_the_tables_name_of_the_entry_frame(stack_, call):
    assert call_of(stack_.split()) == call


def test_trace_events_of_calls_have_the_kernels_names():
    assert kernel_name("umount2") == "umount"
    assert kernel_name("stat") == "newstat"
    assert kernel_name("mount") == "mount"
    assert kernel_name("clone") == "clone"


@pytest.mark.parametrize(
    ("stack_", "expected"),
    [
        ("cap_capable security_capable ovl_open_realfile ovl_open", {"site": "ovl_open_realfile", "overlay": True}),
        ("cap_capable security_capable generic_permission ovl_permission inode_permission", {"own": True}),
        ("cap_capable setattr_prepare ovl_setattr notify_change", {"site": "setattr_prepare", "own": True}),
        ("cap_capable setattr_prepare ext4_setattr notify_change ovl_setattr", {"overlay": True, "own": False}),
        ("cap_capable xattr_permission vfs_setxattr ovl_fill_super path_mount", {"overlay": False, "own": False}),
        ("cap_capable security_capable has_ns_capability cap_ptrace_traceme", {"own": False}),
        ("cap_capable security_capable generic_permission do_faccessat __x64_sys_access", {"own": False}),
        ("cap_capable cap_vm_enough_memory security_vm_enough_memory_mm dup_mmap", {"accounting": True, "own": True}),
        ("cap_capable security_vm_enough_memory_mm shmem_get_folio ovl_copy_up", {"accounting": True, "own": False}),
        ("trace_event_raw_event_cap_capable cap_capable security_capable capable __x64_sys_chroot do_syscall_64",
         {"site": "__x64_sys_chroot", "call": "chroot", "stack": ("__x64_sys_chroot",)}),
        ("arch_rethook_trampoline capable x.isra.0", {"site": "x", "stack": ("x.isra.0",)}),
        ("cap_capable security_capable", {"site": "?", "call": None}),
    ],
)  # fmt: skip
def test_a_stack_tells_the_site_and_whose_credentials_it_can_have_used(stack_, expected):
    info = classify(stack_.split())
    assert isinstance(info, StackInfo)
    assert {name: getattr(info, name) for name in expected} == expected
