"""`deepwell completion SHELL`: a script that completes commands, options and choices on Tab."""

from __future__ import annotations

from deepwell.cli.commands import GROUPS, MODELS, names_model
from deepwell.cli.parser import CONFIG_HELP, configurable, summary
from deepwell.options import CompletionOptions
from deepwell.settings import Option, options_of

_CONFIG = Option(name="config", env="", help=CONFIG_HELP, allowed="a path", default=None, type=None)
_HELP = Option(name="help", env="", help="Explain the command", allowed="", default=False, type=None, switch=True)


def run(options: CompletionOptions) -> int:
    print({"bash": bash, "zsh": zsh, "fish": fish}[options.shell]())
    return 0


def bash() -> str:
    values, flags, models = [], [], []
    for command, options in _commands():
        own = [option for option in options if not option.argument]
        arguments = [choice for option in options if option.argument for choice in option.choices]
        if any(map(names_model, options)):
            models.append(command)
        values += [
            f'        "{command} {option.flag}") words="{" ".join(option.choices)}" ;;'
            for option in own
            if option.choices
        ]
        flags.append(f'        {command}) words="{" ".join([*arguments, *(option.flag for option in own)])}" ;;')
    return "\n".join(
        [
            "_deepwell() {",
            '    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD - 1]}" words=""',
            '    if [ "$COMP_CWORD" -eq 1 ]; then',
            f'        words="{" ".join(GROUPS)} --help --version"',
            "    else",
            '        case "${COMP_WORDS[1]}" in',
            *("    " + line for line in flags),
            "        esac",
            '        case "${COMP_WORDS[1]} $previous" in',
            *("    " + line for line in values),
            "        esac",
            '        if [[ "$current" != -* ]]; then case "${COMP_WORDS[1]}" in',
            f'            {"|".join(models)}) [[ "$previous" == --* ]] || words="$words $({MODELS})" ;;',
            "        esac; fi",
            "    fi",
            '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")',
            "}",
            "complete -o default -F _deepwell deepwell",
        ]
    )


def zsh() -> str:
    names = "\n".join(f"        {_quoted(f'{name}:{summary(group)}')}" for name, group in GROUPS.items())
    cases = []
    for command, options in _commands():
        specs = " ".join(_quoted(_zsh_spec(command, option)) for option in options)
        cases.append(f"        {command}) _arguments {specs} ;;")
    return "\n".join(
        [
            "#compdef deepwell",
            f'_deepwell_models() {{ local -a names=(${{(f)"$({MODELS})"}}); compadd -a names; _files }}',
            "_deepwell() {",
            "    local -a commands=(",
            names,
            "    )",
            "    if (( CURRENT == 2 )); then _describe command commands; return; fi",
            "    shift words; (( CURRENT-- ))",
            '    case "$words[1]" in',
            *cases,
            "    esac",
            "}",
            "compdef _deepwell deepwell",
        ]
    )


def fish() -> str:
    lines = ["complete -c deepwell -n __fish_use_subcommand -l version -d 'Show the version'"]
    for command, options in _commands():
        help_ = summary(GROUPS[command])
        lines.append(f"complete -c deepwell -f -n __fish_use_subcommand -a {command} -d {_quoted(help_)}")
        for option in options:
            here = f"complete -c deepwell -n '__fish_seen_subcommand_from {command}'"
            choices = f" -f -a '{' '.join(option.choices)}'" if option.choices else ""
            if option.argument:
                lines += [here + choices] if choices else [f"{here} -a '({MODELS})'"] if names_model(option) else []
                continue
            takes = "" if option.switch else " -r"
            lines.append(f"{here} -l {option.flag[2:]}{takes}{choices} -d {_quoted(option.help)}")
    return "\n".join(lines)


def _commands() -> list[tuple[str, tuple[Option, ...]]]:
    """Every command with what it takes, --config and --help included."""
    found = []
    for command, group in GROUPS.items():
        options = options_of(command, group)
        found.append((command, (*options, _CONFIG, _HELP) if configurable(options) else (*options, _HELP)))
    return found


def _zsh_spec(command: str, option: Option) -> str:
    value = f"({' '.join(option.choices)})" if option.choices else "_files" if option.allowed == "a path" else " "
    if names_model(option):
        value = "_deepwell_models"
    if option.argument:
        return f":{option.name}:{value}"
    text = option.help.replace("[", "(").replace("]", ")").replace(":", r"\:")
    many = "*" if option.repeats else ""
    return f"{many}{option.flag}[{text}]" + ("" if option.switch else f":{option.name}:{value}")


def _quoted(text: str) -> str:
    """In single quotes, for all three shells."""
    return "'" + text.replace("'", "’") + "'"
