"""What a user types at make, to the letter, and the one way into every environment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from requirements import install as installer

ROOT = Path(__file__).parents[1]

# What make, the shell or both would take for something else.
AWKWARD = [
    "a $100 bill",
    'say "két" kutya',
    "`touch run-by-the-shell`",
    "$(shell touch run-by-make)$HOME",
    "it's # no comment; \\ & | < > * ? !",
    "two\nlines",
    "--help",
    "spaces  kept ",  # but for leading ones, which make takes as its own
    "$$",
]

PRINTS_ARGUMENTS = f"""#!{sys.executable}
import json, sys
print(json.dumps(sys.argv[1:]))
"""

LOGS_ITS_TIME = f"""#!{sys.executable}
import pathlib, sys, time
log = pathlib.Path(__file__).with_name("log")
with log.open("a") as file:
    file.write(f"begin {{sys.argv[2:4]}}\\n")
time.sleep(0.3)
with log.open("a") as file:
    file.write(f"end {{sys.argv[2:4]}}\\n")
"""

Make = Callable[..., subprocess.CompletedProcess[str]]


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Runs make with a program in place of every environment's Python that prints its arguments."""
    fake = program(tmp_path / "python", PRINTS_ARGUMENTS)

    def run(
        *arguments: str, python: Path = fake, home: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        if home is not None:
            environment["HOME"] = home
        stamps = [f"{venv}/.run-stamp" for venv in (".venv", ".venv-search", ".venv-scale")]
        command = [
            "make",
            "-s",
            *arguments,
            *(word for stamp in stamps for word in ("-o", stamp)),
            "-o",
            "setup",
        ]
        command += [f"{name}={python}" for name in ("RUN", "SEARCH", "SCALE")]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


def passed(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    # The last line: some recipes say first what takes long.
    arguments: list[str] = json.loads(done.stdout.splitlines()[-1])
    return arguments


@pytest.mark.parametrize(
    ("target", "variable", "option", "value"),
    [
        *(("search", "TEXT", "--text=", value) for value in AWKWARD),
        ("search", "SHEET", "--sheet=", "".join(AWKWARD)),
        ("index", "IMAGES", "", "".join(AWKWARD)),
        ("index", "FORGET", "--forget=", "".join(AWKWARD)),
        ("duplicates", "PAGE", "--page=", "".join(AWKWARD)),
        ("bulk", "IMAGES", "", "".join(AWKWARD)),
        ("bulk-lines", "FOR", "--for=", "".join(AWKWARD)),
        ("export", "MODEL", "--model=", "".join(AWKWARD)),
        ("export", "TEXT_MODEL", "--text-model=", "".join(AWKWARD)),
        ("models", "LANGUAGE", "--language=", "".join(AWKWARD)),
        ("example", "TEXTS", "--texts=", "".join(AWKWARD)),
        ("serve-ray", "STORE", "--store=", "".join(AWKWARD)),
        ("evaluate", "IMAGES", "--images=", "".join(AWKWARD)),
        ("gpu-proof", "OUTPUT", "--output=", "".join(AWKWARD)),
    ],
)
def test_values_reach_the_program_as_typed(
    make: Make, target: str, variable: str, option: str, value: str
) -> None:
    """CASES 11 and 60: `$`, quotes, backticks, `$(shell …)`, line breaks, for make and for the shell."""
    assert option + value in passed(make(target, f"{variable}={value}"))
    assert not (ROOT / "run-by-the-shell").exists()
    assert not (ROOT / "run-by-make").exists()


def test_defaults_are_kept(make: Make) -> None:
    """`?=` takes an unexported variable for defined: a default that stands too low is the empty text."""
    assert "--store=model_store" in passed(make("serve-ray"))
    assert passed(make("attack"))[-2:] == ["--store=model_store", "--minutes=30"]
    assert "--precision=auto" in passed(make("export"))


@pytest.mark.parametrize(
    ("target", "variable"), [("index", "IMAGES"), ("bulk", "IMAGES"), ("search", "IMAGE")]
)
def test_a_quoted_tilde_is_the_home_folder(make: Make, target: str, variable: str) -> None:
    """CASES 11: no shell expands `~` within quotes, and not every one in `NAME=~/…`."""
    arguments = passed(make(target, f"{variable}=~/my $1 pictures", home="/home/somebody"))
    assert any(a.removeprefix("--image=") == "/home/somebody/my $1 pictures" for a in arguments)


@pytest.mark.parametrize("target", ["index", "bulk"])
@pytest.mark.parametrize("given", [[], ["IMAGES="]])
def test_without_images_nothing_is_indexed(make: Make, target: str, given: list[str]) -> None:
    """CASES 50: an empty name was the project's own folder."""
    done = make(target, *given)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"make {target}: IMAGES is missing: make {target} IMAGES=" in done.stderr


def test_a_folder_is_forgotten_without_naming_pictures(make: Make) -> None:
    """CASES 50: the two together are for the program to refuse."""
    assert passed(make("index", "FORGET=/a b", "TABLE=t")) == [
        *("-m", "search", "index", "--table=t", "--forget=/a b"),
    ]
    assert passed(make("index", "FORGET=/a", "IMAGES=/b"))[-3:] == ["--forget=/a", "--", "/b"]
    assert make("index", "FORGET=").returncode == 2


def test_lines_for_an_engine(make: Make) -> None:
    arguments = passed(make("bulk-lines", "FOR=opensearch", "TABLE=t", "OUTPUT=/a b"))
    assert arguments == ["-m", "search", "bulk-lines", "--table=t", "--output=/a b", "--for=opensearch"]
    done = make("bulk-lines")
    assert done.returncode == 2
    assert "make bulk-lines: FOR is missing: make bulk-lines FOR=opensearch" in done.stderr


def test_what_is_left_out_and_done_again_is_passed_on(make: Make) -> None:
    """CASES 40: the patterns go to the program as they are, and no shell sees a file name in them."""
    arguments = passed(make("index", "IMAGES=/b", "EXCLUDE=*.py|$x/", "AGAIN=1"))
    assert arguments == ["-m", "search", "index", "--exclude=*.py|$x/", "--again", "--", "/b"]
    arguments = passed(make("bulk", "IMAGES=/b", "EXCLUDE=*.py|$x/", "MODEL=a b"))
    assert arguments == ["-m", "scale.bulk", "--model=a b", "--exclude=*.py|$x/", "--", "/b"]


def test_goals_keep_their_order_in_a_parallel_make(make: Make, tmp_path: Path) -> None:
    """CASES 63: `MAKEFLAGS=-j4 make export … archive serve` began all three at once."""
    fake = program(tmp_path / "logs", LOGS_ITS_TIME)
    done = make("-j4", "export", "archive", "serve", python=fake)
    assert done.returncode == 0, done.stderr
    commands = [["export_scripts", "export"], ["export_scripts", "archive"], ["serving", "serve"]]
    wanted = [f"{what} {command}" for command in commands for what in ("begin", "end")]
    assert (tmp_path / "log").read_text().splitlines() == wanted


# ---------------------------------------------------------------------------------------------------
# help


def test_help_is_one_screen(make: Make) -> None:
    """Eleven targets in 24 lines of 100 columns, in the order in which somebody needs them."""
    lines = make("help").stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    shown = re.findall(r"^  make (\S+)  ", "\n".join(lines), re.MULTILINE)
    server = ["models", "export", "archive", "serve", "example", "stop"]
    assert shown == ["demo", *server, "index", "search", "ui", "bulk"]
    assert make().stdout.splitlines() == lines


def test_help_all_has_every_target_and_variable(make: Make) -> None:
    shown = make("help-all").stdout
    files = [ROOT / "Makefile", *(ROOT / "make").iterdir()]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    targets = set(re.findall(r"^\.PHONY: (\S+)$", text, re.MULTILINE)) - {"help", "help-all"}
    assert set(re.findall(r"^  make (\S+)  ", shown, re.MULTILINE)) == targets
    # What can be handed in, but for what the program says where it is missing or wrong.
    arguments = re.search(r"^ARGUMENTS := ((?:.*\\\n)*.*)", text, re.MULTILINE)
    assert arguments is not None
    assert set(re.findall(r"[A-Z_]+", arguments[1])) <= set(re.findall(r"\b[A-Z_]+\b", shown))


@pytest.mark.parametrize(
    ("target", "locks"),
    [
        ("demo", ["run", "java"]),
        ("check", ["run", "java", "onnx", "dev"]),
        ("test", ["run", "java", "onnx", "dev", "bench"]),
        ("search", ["search"]),
        ("bulk", ["scale"]),
    ],
)
def test_what_a_target_installs(target: str, locks: list[str]) -> None:
    """`check` needs no OpenVINO, and a room nothing of another's."""
    command = ["make", "--dry-run", "--always-make", target, "IMAGES=x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.findall(r"requirements\.install \S+ requirements/(\S+)\.lock", done.stdout) == locks


# ---------------------------------------------------------------------------------------------------
# requirements.install


@pytest.fixture
def install() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs requirements.install as make does, by the interpreter that has uv and pip."""
    python = ROOT / ".venv-uv" / "bin" / "python"
    if not python.is_file():
        pytest.skip("no .venv-uv; run 'make setup'")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), "-m", "requirements.install", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    return run


def write_torch(folder: Path, version: str) -> Path:
    """A wheel by the name of torch with nothing in it."""
    folder.mkdir(exist_ok=True)
    info = f"torch-{version}.dist-info"
    path = folder / f"torch-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No index, and nothing that this machine has told pip or uv."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_NO_INDEX", "1")
    monkeypatch.setenv("UV_OFFLINE", "1")


def torch_in(environment: Path) -> list[str]:
    return [path.name for path in environment.rglob("torch-*.dist-info")]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_pip_was_told_goes_first(
    install: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """CASES 69: PIP_FIND_LINKS names a folder with a CPU build; uv reads no variable of pip's."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(write_torch(tmp_path / "wheels", "2.13.0+cpu")))
    requirement = tmp_path / "torch.txt"
    requirement.write_text("torch==2.13.0\n")
    arguments = [str(tmp_path / "env"), "--torch", str(requirement), "--device", device]
    done = install(*arguments)
    assert done.returncode == 0, done.stderr
    assert torch_in(tmp_path / "env") == ["torch-2.13.0+cpu.dist-info"]
    assert "PyTorch 2.13.0+cpu, 190 MB to fetch" in done.stdout
    # A second time nothing is to be done, and nothing is said of it.
    again = install(*arguments)
    assert (again.returncode, again.stdout) == (0, "")


CPU, CU130 = ({"UV_TORCH_BACKEND": backend} for backend in ("cpu", "cu130"))


class AskedUv:
    """Answers for uv: versions by the backend that is asked for, None where it is out of reach."""

    def __init__(self, answers: dict[str | None, str | None], **environment: str):
        self.answers = answers
        self.environment = environment

    def would_install(self, requirement: str, name: str, *arguments: str) -> str | None:
        return self.answers[arguments[1] if arguments else None]


@pytest.mark.parametrize(
    ("answers", "environment", "device", "version", "arguments"),
    [
        # No driver: uv's auto means the CPU build.
        ({None: "2.13.0", "auto": "2.13.0+cpu"}, {}, "cpu", "2.13.0+cpu", ["--torch-backend", "auto"]),
        # A driver.
        ({None: "2.13.0", "auto": "2.13.0+cu130"}, {}, "cpu", "2.13.0+cu130", ["--torch-backend", "auto"]),
        # PyTorch's indexes out of reach: what PyPI, or a mirror of it, has.
        ({None: "2.13.0", "auto": None}, {}, "cpu", "2.13.0", []),
        # An image for machines with a GPU, built on one without.
        ({None: "2.13.0", "auto": "2.13.0+cpu"}, {}, "cuda", "2.13.0", []),
        # Both named by the user: the choice between builds is more than a place where one lies.
        ({None: "2.13.0", "cpu": "2.13.0+cpu"}, CPU, "cpu", "2.13.0+cpu", ["--torch-backend", "cpu"]),
        ({None: "2.13.0+cpu", "cu130": "2.13.0+x"}, CU130, "cpu", "2.13.0+x", ["--torch-backend", "cu130"]),
        # Only PyTorch's index is in reach.
        ({None: None, "auto": "2.13.0+cpu"}, {}, "cpu", "2.13.0+cpu", ["--torch-backend", "auto"]),
    ],
)  # fmt: skip
def test_which_build_of_torch(
    answers: dict[str | None, str | None],
    environment: dict[str, str],
    device: str,
    version: str,
    arguments: list[str],
) -> None:
    """CASES 69: the CPU build by itself, unless a driver, DEVICE=cuda or the user asks otherwise."""
    uv = AskedUv(answers, **environment)
    assert installer.torch_choice("torch==2.13.0", uv, device) == (version, arguments)


def test_no_torch_anywhere() -> None:
    with pytest.raises(installer.InstallError, match="is the network there"):
        installer.torch_choice("torch==2.13.0", AskedUv({None: None, "auto": None}), "cpu")


def test_pip_settings_in_uvs_words() -> None:
    told = {
        "global.index-url": "https://one.test/simple",
        ":env:.extra-index-url": "https://two.test/simple https://three.test/simple",
        "global.extra-index-url": "https://never.test/simple",
        "install.find-links": "/wheels /more",
    }
    assert installer.uv_environment(told, {"UV_DEFAULT_INDEX": "https://uv.test/simple"}) == {
        "UV_DEFAULT_INDEX": "https://uv.test/simple",
        "UV_INDEX": "https://two.test/simple https://three.test/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/wheels,/more",
    }


@pytest.mark.parametrize(
    ("python", "said"),
    [
        ("#!/bin/sh\necho 3 9\n", r"is 3\.9; needed is 3\.11 to 3\.14"),
        ("#!/bin/sh\necho 3 15\n", r"is 3\.15; needed is 3\.11 to 3\.14"),
        ("#!/bin/sh\nexit 1\n", "no Python that runs"),
    ],
)
def test_a_wrong_python_leaves_no_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], python: str, said: str
) -> None:
    """CASES 62: the bad environment stayed, and the next command with a good Python used it."""
    wrong = program(tmp_path / "python3.9", python)
    assert installer.main([str(tmp_path / "env"), "--python", str(wrong)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search(said, message)
    assert not (tmp_path / "env").exists()


@pytest.mark.usefixtures("offline")
def test_an_environment_that_could_not_be_filled_goes_again(install: Make, tmp_path: Path) -> None:
    """CASES 62: a half-made environment is not there for the next command."""
    lock = tmp_path / "some.lock"
    lock.write_text(f"nowhere-to-be-had==1.0 --hash=sha256:{'0' * 64}\n")
    done = install(str(tmp_path / "env"), str(lock))
    assert done.returncode == 1
    assert "nowhere-to-be-had" in done.stderr
    assert not (tmp_path / "env").exists()


@pytest.mark.usefixtures("offline")
def test_an_environment_of_another_python_is_made_anew(install: Make, tmp_path: Path) -> None:
    """CASES 62: a good Python after a bad one."""
    program_folder = tmp_path / "env" / "bin"
    program_folder.mkdir(parents=True)
    # As every environment has it; uv clears no other folder.
    (tmp_path / "env" / "pyvenv.cfg").touch()
    program(program_folder / "python", "#!/bin/sh\necho 3 9\n")
    assert install(str(tmp_path / "env")).returncode == 0
    assert installer.python_version(str(program_folder / "python")) == sys.version_info[:2]
