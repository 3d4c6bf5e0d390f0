"""The unpacked Triton server fits the machine and its Python, or the error says what is missing."""

from pathlib import Path

import pytest

from minmo.weights import WeightsError, triton


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked server of empty files, with stubs for two versions of Python."""
    root = tmp_path / "pytriton" / "tritonserver"
    for name in ("bin/tritonserver", "backends/python/libtriton_python.so"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"")
    for version in ("3.9", "3.11"):
        stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
        stub.parent.mkdir(parents=True)
        stub.write_text(version)
    monkeypatch.setattr(triton, "python_version", lambda: "3.11")
    monkeypatch.setattr(triton, "_ldd", lambda _: "\tlibc.so.6 => /lib/libc.so.6 (0x1)\n")
    return tmp_path


def selected(server: Path) -> Path:
    return server / "pytriton/tritonserver/backends/python/triton_python_backend_stub"


def test_the_stub_of_the_running_python_is_selected(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton.make_executable(server)
    assert not triton.fits_machine(server)
    triton.fit_to_machine(server)
    assert triton.fits_machine(server)
    assert selected(server).read_text() == "3.11"
    assert selected(server).stat().st_mode & 0o111
    monkeypatch.setattr(triton, "python_version", lambda: "3.9")
    assert not triton.fits_machine(server)
    triton.fit_to_machine(server)
    assert selected(server).read_text() == "3.9"


def test_a_python_without_a_stub_is_told_which_have_one(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "python_version", lambda: "3.14")
    with pytest.raises(WeightsError, match=r"on Python 3\.9 to 3\.11, and this is 3\.14"):
        triton.fit_to_machine(server)


def test_missing_libraries_name_their_packages(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = "\tlibpython3.11.so.1.0 => not found\n\tlibz.so.1 => not found\n"
    monkeypatch.setattr(triton, "_ldd", lambda _: listing)
    with pytest.raises(WeightsError) as error:
        triton.fit_to_machine(server)
    assert "misses libpython3.11.so.1.0, libz.so.1" in str(error.value)
    assert str(error.value).endswith("apt-get install libpython3.11 zlib1g")
    assert not triton.fits_machine(server)


def test_an_old_system_is_told_which_library_is_too_old(
    server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = "tritonserver: /lib/libc.so.6: version `GLIBC_2.34' not found (required by x)\n"
    monkeypatch.setattr(triton, "_ldd", lambda _: listing)
    with pytest.raises(WeightsError, match=r"needs GLIBC 2\.34 or newer"):
        triton.fit_to_machine(server)


def test_another_architecture_is_refused(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(WeightsError, match="x86-64 Linux, and this is Linux on aarch64"):
        triton.fit_to_machine(server)
