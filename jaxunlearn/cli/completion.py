"""Completion of the command line in bash, zsh and fish, as a script that asks nobody.

All names stand in the script: pressing the tabulator starts no Python. Finished runs alone are
looked up, by the shell. After an update, or with a method of one's own, it is written again.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

SHELLS = ("bash", "zsh", "fish")

_RUNS = "@runs"
"""Stands among the words of a command for the names of finished runs."""


class _Command(NamedTuple):
    """Command as a shell completes it: its options, and words with what they mean."""

    help: str
    options: Mapping[str, str]
    words: Sequence[str]


def script(parser: argparse.ArgumentParser, shell: str, sections: Sequence[str]) -> str:
    """Returns the script that completes the words of a command line.

    Args:
      parser: of the command line.
      shell: one of :data:`SHELLS`.
      sections: what ``jaxunlearn list`` may be asked for.
    """
    commands = _commands(parser, sections)
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands, _values())


def _commands(parser: argparse.ArgumentParser, sections: Sequence[str]) -> dict[str, _Command]:
    """Returns the commands with their options and words, read from the parser."""
    from jaxunlearn.config.overrides import list_configs
    from jaxunlearn.methods import METHODS
    from jaxunlearn.metrics import METRICS

    names = list(list_configs())
    benches = [name for name in names if name.startswith("bench_")]
    keys = [f"{key}=" for key in _keys()]
    words = {
        "run": [name for name in names if name not in benches] + keys,
        "bench": [*benches, "requests=", *keys],
        "list": list(sections),
        "explain": [*METHODS, *METRICS],
        "completion": list(SHELLS),
        "show": [_RUNS], "verify": [_RUNS], "purge": [_RUNS], "report": [_RUNS], "compare": [_RUNS],
    }  # fmt: skip
    words["judge-metrics"] = words["plan"] = words["run"]
    (group,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    helps = {one.dest: one.help or "" for one in group._choices_actions}
    return {
        name: _Command(helps.get(name, ""), _options(command), words.get(name, []))
        for name, command in group.choices.items()
    }


def _options(parser: argparse.ArgumentParser) -> dict[str, str]:
    return {
        flag: (action.help or "") % {"default": action.default}
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--")
    }


def _keys() -> Iterator[str]:
    """Yields the keys of a configuration as ``key=value`` takes them."""
    from jaxunlearn.config import Config

    def below(section: Any, prefix: str) -> Iterator[str]:
        for field in dataclasses.fields(section):
            value, name = getattr(section, field.name), f"{prefix}{field.name}"
            if dataclasses.is_dataclass(value):
                yield from below(value, f"{name}.")
            else:
                yield name

    yield from below(Config(), "")


def _values() -> dict[str, list[str]]:
    """Returns the names that may stand behind a key."""
    from jaxunlearn.data.sources import SOURCES
    from jaxunlearn.engine.sharding import PRESETS
    from jaxunlearn.methods import METHODS
    from jaxunlearn.metrics import METRICS
    from jaxunlearn.models import NETWORKS

    return {
        "methods": list(METHODS), "metrics": ["all", *METRICS], "model.name": list(NETWORKS),
        "data.name": list(SOURCES), "mesh": list(PRESETS),
    }  # fmt: skip


def _bash(commands: Mapping[str, _Command], values: Mapping[str, Sequence[str]]) -> str:
    first = shlex.quote(" ".join([*commands, "--help", "--version"]))
    cases = "".join(
        f"        {name}) words={shlex.quote(' '.join(_plain(one.words)))}"
        f" options={shlex.quote(' '.join(one.options))}"
        f"{' runs=1' if _RUNS in one.words else ''} ;;\n"
        for name, one in commands.items()
    )
    behind = "".join(
        f"        {key}) words={shlex.quote(' '.join(names))} ;;\n" for key, names in values.items()
    )
    return f"""# bash completion of jaxunlearn; written by `jaxunlearn completion bash`
_jaxunlearn() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" before="" key="" front="" words="" options=""
    local runs="" path
    ((COMP_CWORD > 0)) && before="${{COMP_WORDS[COMP_CWORD-1]}}"
    # bash takes key=value apart, unless the user has told it otherwise
    if [[ $cur == "=" ]]; then
        key=$before cur=""
    elif [[ $before == "=" ]]; then
        key="${{COMP_WORDS[COMP_CWORD-2]}}"
    elif [[ $cur == *=* ]]; then
        key="${{cur%%=*}}" front="${{cur%%=*}}=" cur="${{cur#*=}}"
    fi
    if [[ $before == --runs ]]; then
        COMPREPLY=($(compgen -d -- "$cur"))
        return
    elif [[ -n $key ]]; then
        case $key in
{behind}        esac
        if [[ $cur == *,* ]]; then
            front+="${{cur%,*}}," cur="${{cur##*,}}"
        fi
        COMPREPLY=($(compgen -P "$front" -W "$words" -- "$cur"))
        [[ -z $words ]] && COMPREPLY=($(compgen -f -- "$cur"))
        return
    elif ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W {first} -- "$cur"))
        return
    fi
    case ${{COMP_WORDS[1]}} in
{cases}    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
        return
    elif [[ -n $runs ]]; then
        for path in runs/*/report.json; do
            [[ -e $path ]] && path="${{path%/*}}" && words+=" ${{path##*/}}"
        done
    fi
    COMPREPLY=($(compgen -W "$words" -- "$cur") $(compgen -f -- "$cur"))
    # a value follows a key at once
    [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
    return 0
}}
complete -F _jaxunlearn jaxunlearn
"""


def _zsh(commands: Mapping[str, _Command], values: Mapping[str, Sequence[str]]) -> str:
    def described(pairs: Mapping[str, str]) -> str:
        # a colon divides a word from what it means
        return " ".join(
            shlex.quote(f"{word.replace(':', chr(92) + ':')}:{_line(text)}")
            for word, text in pairs.items()
        )

    cases = "".join(
        f"        {name})\n"
        f"            options=({described(one.options)})\n"
        f"            words_=({' '.join(map(shlex.quote, _plain(one.words)))})\n"
        + ("            words_+=(runs/*/report.json(N:h:t))\n" if _RUNS in one.words else "")
        + "            ;;\n"
        for name, one in commands.items()
    )
    behind = "".join(
        f"            {key}) words_=({' '.join(map(shlex.quote, names))}) ;;\n"
        for key, names in values.items()
    )
    return f"""#compdef jaxunlearn
# zsh completion of jaxunlearn; written by `jaxunlearn completion zsh`
_jaxunlearn() {{
    local -a commands options words_ keys_
    commands=({described({name: one.help for name, one in commands.items()})})
    if ((CURRENT == 2)); then
        _describe command commands
        return
    fi
    if [[ $words[CURRENT-1] == --runs ]]; then
        _files -/
        return
    fi
    if [[ $PREFIX == *=* ]]; then
        case ${{PREFIX%%=*}} in
{behind}            *) compset -P '*='; _files; return ;;
        esac
        compset -P '*[=,]'
        compadd -a words_
        return
    fi
    case $words[2] in
{cases}    esac
    keys_=(${{(M)words_:#*=}})
    words_=(${{words_:#*=}})
    [[ $PREFIX == -* ]] && _describe option options
    compadd -a words_
    compadd -S '' -a keys_
    _files
}}
if [[ $funcstack[1] == _jaxunlearn ]]; then
    _jaxunlearn "$@"
else
    compdef _jaxunlearn jaxunlearn
fi
"""


def _fish(commands: Mapping[str, _Command], values: Mapping[str, Sequence[str]]) -> str:
    def quote(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    lines = [
        "# fish completion of jaxunlearn; written by `jaxunlearn completion fish`",
        "complete -c jaxunlearn -n __fish_use_subcommand -l help -d 'show how it is used'",
        "complete -c jaxunlearn -n __fish_use_subcommand -l version -d 'print the version'",
    ]
    for name, one in commands.items():
        lines.append(
            f"complete -c jaxunlearn -n __fish_use_subcommand -a {name} -d {quote(_line(one.help))}"
        )
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        words = " ".join(_plain(one.words))
        if _RUNS in one.words:
            words += " (for path in runs/*/report.json; basename (dirname $path); end)"
        if words:
            # fish reads what is given behind -a once more when it completes
            lines.append(f"complete -c jaxunlearn {seen} -a {quote(words.strip())}")
        lines += [
            f"complete -c jaxunlearn {seen} -l {flag[2:]} -d {quote(_line(text))}"
            for flag, text in one.options.items()
        ]
    keyed = " ".join(f"{key}={name}" for key, names in values.items() for name in names)
    takers = " ".join(name for name, one in commands.items() if "methods=" in one.words)
    lines.append(f"complete -c jaxunlearn -n '__fish_seen_subcommand_from {takers}' -a '{keyed}'")
    return "\n".join(lines) + "\n"


def _plain(words: Sequence[str]) -> list[str]:
    return [word for word in words if word != _RUNS]


def _line(text: str) -> str:
    return " ".join(text.split())
