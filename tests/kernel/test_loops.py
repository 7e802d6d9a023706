"""Loop devices that a run leaves behind: told from everybody else's, and let go of."""

import subprocess

import pytest

from profiler.harness.loops import bound_below, let_go
from profiler.kernel.loops import BoundLoop, bound, release

pytestmark = pytest.mark.kernel


@pytest.fixture
def bind():
    """Binds files to free loop devices, which are let go of at the end."""
    nodes = []

    def losetup(path):
        done = subprocess.run(["losetup", "-f", "--show", path], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no loop device here: {done.stderr.strip()}")
        nodes.append(done.stdout.strip())
        return nodes[-1]

    yield losetup
    for node in nodes:
        subprocess.run(["losetup", "-d", node], capture_output=True, check=False)


@pytest.fixture
def overlay(tmp_path):
    """An overlay's lower, upper and merged directories; unmounted by the test or at its end."""
    directories = [tmp_path / name for name in ("lower", "upper", "work", "merged")]
    for directory in directories:
        directory.mkdir()
    lower, upper, work, merged = directories
    (lower / "image").write_bytes(bytes(1 << 20))
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    done = subprocess.run(["mount", "-t", "overlay", "none", "-o", options, merged], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("no overlay below this directory")
    yield lower, upper, merged
    subprocess.run(["umount", "-l", merged], capture_output=True, check=False)


def nodes(loops):
    return [loop.node for loop in loops]


def test_a_bound_device_names_its_file_and_is_let_go_of_once(tmp_path, bind):
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    node = bind(image)
    (loop,) = [loop for loop in bound() if loop.node == node]
    status = image.stat()
    assert (loop.device, loop.inode) == (status.st_dev, status.st_ino)
    assert not release(BoundLoop(node, loop.path, loop.device, loop.inode + 1))  # another file by now
    assert release(loop)
    assert not release(loop)
    assert node not in nodes(bound())


@pytest.fixture(params=["as it is", "tmpfs"])  # the latter's device number is no disk's, as with btrfs
def volume(tmp_path, request):
    """A directory of the user's, which stays mounted."""
    directory = tmp_path / "volume"
    directory.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    yield directory
    if request.param == "tmpfs":
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_file_of_a_mounted_directory_is_known_by_its_device_and_inode(tmp_path, volume, bind):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "--bind", volume, mounted], check=True)
    (mounted / "image").write_bytes(bytes(1 << 20))
    node = bind(mounted / "image")
    subprocess.run(["umount", "-l", mounted], check=True)
    own = bound_below([], [str(volume)])
    assert nodes(own) == [node]
    (tmp_path / "image").write_bytes(b"")  # the same path, another file
    assert bound_below([], [str(tmp_path)]) == ()
    assert let_go(own) == (node,)


@pytest.mark.parametrize("name", ["made", "image"])
def test_a_file_of_an_overlay_is_let_go_of_when_that_is_gone(overlay, bind, name):
    lower, upper, merged = overlay
    with (merged / name).open("ab") as file:  # new, or copied up: then it keeps the inode of the layer below
        file.write(bytes(1 << 20))
    node = bind(merged / name)
    (here,) = [loop for loop in bound() if loop.node == node]
    assert let_go([here]) == ()  # it is mounted: somebody may still want it
    subprocess.run(["umount", "-l", merged], check=True)
    own = bound_below([str(upper), str(lower)], [])
    assert nodes(own) == [node]
    assert let_go(own) == (node,)
    assert bound_below([str(upper), str(lower)], []) == ()


def test_a_link_out_of_the_layer_leads_nowhere(tmp_path, bind):
    image = tmp_path / "host" / "image"
    image.parent.mkdir()
    image.write_bytes(bytes(1 << 20))
    node = bind(image)
    layer = tmp_path / "layer"
    place = layer / str(tmp_path).lstrip("/")
    place.mkdir(parents=True)
    (place / "host").symlink_to(tmp_path / "host")
    assert node not in nodes(bound_below([str(layer)], [str(layer)]))
