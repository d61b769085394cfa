"""What Ray would leave open to other users of the machine; a running server: tests/http/test_ray_serve.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipserve.errors import ServerError
from scale.ray_files import keep_token_private, private_files, token_file
from scale.serve.__main__ import main


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    path = tmp_path / ".ray" / "auth_token"
    path.parent.mkdir()
    return path


def test_a_token_that_others_could_read(token: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ATTACKS C4: Ray 2.60.0, the newest that is published, writes it 0644."""
    token.write_text("secret")
    token.chmod(0o644)
    keep_token_private()
    assert token.stat().st_mode & 0o777 == 0o600
    told = capsys.readouterr().err
    assert f"{token}, Ray's token, could be read by other users (mode 0644)" in told
    assert "secret" not in told
    keep_token_private()
    assert capsys.readouterr().err == ""


def test_a_token_of_another_users(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token.write_text("theirs")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ServerError, match=r"auth_token, Ray's token, is another user's \(uid \d+\)"):
        keep_token_private()


def test_a_token_is_made_before_ray_makes_it(
    token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert token_file() == token
    keep_token_private()
    # As long as Ray's own, and private from the first moment.
    assert len(bytes.fromhex(token.read_text())) == 32
    assert token.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "other"))
    assert token_file() == tmp_path / "other"


def test_rays_folder_lies_in_a_private_one(tmp_path: Path) -> None:
    """ATTACKS C7."""
    (tmp_path / "own").mkdir(mode=0o755)
    before = os.umask(0o022)
    try:
        with private_files(tmp_path / "own") as folder:
            assert folder.parent.stat().st_mode & 0o777 == 0o700
            made = tmp_path / "made"
            made.write_text("as Ray does")
            assert made.stat().st_mode & 0o777 == 0o600
        assert os.umask(0o022) == 0o022
        with private_files(None) as folder:
            parent = folder.parent
            assert parent.stat().st_mode & 0o777 == 0o700
        assert not parent.exists()
    finally:
        os.umask(before)


def test_a_port_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """CASES 61: `make serve-ray PORT=80808`."""
    assert main(["--port", "80808"]) == 1
    assert "port 80808 is none: they end at 65535; name another with PORT=…" in capsys.readouterr().err
