"""Completion, asked of the shells themselves where they are here."""

import shutil
import subprocess

import pytest

from jaxunlearn.cli import main
from jaxunlearn.cli.completion import SHELLS

CASES = [
    ("run mnist_ne", "mnist_neuron_path"),
    ("run train.e", "train.epochs="),
    ("run record.ind", "record.indices="),
    ("run methods=finetune,scr", "methods=finetune,scrub"),
    ("run data.name=fash", "data.name=fashion_mnist"),
    ("bench bench_m", "bench_mnist"),
    ("explain neuron_p", "neuron_path"),
    ("explain judged_u", "judged_unseen"),
    ("list pict", "pictures"),
    ("show mine", "mine_too"),
    ("purge --dr", "--dry-run"),
    ("doc", "doctor"),
]
"""Words that are typed, and what the last of them becomes."""


@pytest.fixture(scope="module")
def scripts():
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for shell in SHELLS:
            patch.setattr(
                "builtins.print", lambda text, shell=shell, **_: made.update({shell: text})
            )
            assert main(["completion", shell]) == 0
    return made


@pytest.fixture
def ask(scripts, tmp_path):
    """Runs a shell with its script, in a folder that holds a finished run."""
    (tmp_path / "runs" / "mine_too").mkdir(parents=True)
    (tmp_path / "runs" / "mine_too" / "report.json").write_text("{}")

    def run(shell, code, *options):
        if shutil.which(shell) is None:
            pytest.skip(f"no {shell} here")
        (tmp_path / "script").write_text(scripts[shell])
        done = subprocess.run(
            [shell, *options, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=50
        )
        assert not done.stderr
        return done.stdout

    return run


def test_bash_completes(ask):
    # bash takes words apart at =, as COMP_WORDBREAKS says, or not
    code = "source ./script\n"
    for apart in (True, False):
        for typed, _ in CASES:
            words = f"jaxunlearn {typed}".replace("=", " = " if apart else "=")
            code += f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n"
            code += '_jaxunlearn; echo "${COMPREPLY[@]}"\n'
    found = ask("bash", code).splitlines()
    wanted = [full for _, full in CASES]
    assert found[len(CASES) :] == wanted
    after = [full.partition("=")[2] or full for full in wanted]
    assert found[: len(CASES)] == after


def test_fish_completes(ask):
    # fish takes the words behind a comma for another's
    typed = [case for case in CASES if "," not in case[0]]
    code = "source ./script\n" + "".join(f"complete -C 'jaxunlearn {one}'\n" for one, _ in typed)
    found = [line.partition("\t")[0] for line in ask("fish", code).splitlines()]
    assert found == [full for _, full in typed]


def test_zsh_completes(ask):
    press = "".join(
        f"zpty -w -n z 'jaxunlearn {typed}'$'\\t'; zpty -r -m z found '*{typed}*{full[-2:]}*'\n"
        f"print -r -- $found; zpty -w -n z $'\\x15'\n"
        for typed, full in CASES[1:4]
    )
    code = (
        "zmodload zsh/zpty; zpty z 'PS1= TERM=dumb zsh -f -i'\n"
        "zpty -w z 'autoload -U compinit; compinit -u -D; source ./script; print rea''dy'\n"
        f"zpty -r -m z found '*ready*'\n{press}zpty -d z\n"
    )
    shown = ask("zsh", code, "-f")
    for _, full in CASES[1:4]:
        assert full.split()[-1][-6:] in shown.replace("\x07", "").replace("\b", "")


def test_another_shell_is_named(capsys):
    assert main(["completion", "powershell"]) == 1
    assert "shell: expected one of bash, zsh, fish, got 'powershell'" in capsys.readouterr().err
