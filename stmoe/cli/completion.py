"""Prints a script for the completion of commands, options and names: bash, zsh or fish.

bash:  eval "$(stmoe completion bash)"           in ~/.bashrc
zsh:   eval "$(stmoe completion zsh)"            in ~/.zshrc, after compinit
fish:  stmoe completion fish > ~/.config/fish/completions/stmoe.fish

The script holds the commands, their options and the experiments of the installed version. Files and run
directories are completed as paths.
"""

import argparse
import importlib

from stmoe import experiment
from stmoe.cli import main

# Commands whose words may be experiments.
EXPERIMENTS = ('train', 'show', 'diff', 'list', 'compare', 'eval', 'compile', 'finetune', 'upcycle', 'cache')

BASH = '''_stmoe() {
  local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} words=
  if [ "$COMP_CWORD" = 1 ]; then
    words='%(commands)s'
  else
    case $command in
%(cases)s
    esac
    case " %(named)s " in *" $command "*) words="$words %(experiments)s" ;; esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _stmoe stmoe
'''
ZSH = '''_stmoe() {
  local -a choices
  local command=${words[2]}
  if (( CURRENT == 2 )); then
    choices=(%(commands)s)
  else
    case $command in
%(cases)s
    esac
    case " %(named)s " in *" $command "*) choices+=(%(experiments)s) ;; esac
    _files
  fi
  compadd -a choices
}
compdef _stmoe stmoe
'''


def add_arguments(parser):
  parser.add_argument('shell', choices=('bash', 'zsh', 'fish'), help='the shell that the script is for')


def run(args):
  print(script(args.shell), end='')


def script(shell):
  """Returns the script for `shell`."""
  options, experiments = _options(), list(experiment.available())
  if shell == 'fish':
    return '\n'.join(_fish(options, experiments)) + '\n'
  form = "      {0}) words='{1}' ;;" if shell == 'bash' else '      {0}) choices=({1}) ;;'
  cases = '\n'.join(form.format(name, ' '.join(own)) for name, own in options.items())
  return (BASH if shell == 'bash' else ZSH) % dict(
      commands=' '.join(options), cases=cases, named=' '.join(EXPERIMENTS), experiments=' '.join(experiments))


def _fish(options, experiments):
  commands = main.commands()
  yield 'complete -c stmoe -f -n __fish_use_subcommand'
  for name, own in options.items():
    line = commands[name].replace('\\', '').replace("'", '')
    yield f"complete -c stmoe -n __fish_use_subcommand -a {name} -d '{line}'"
    for option in own:
      flag = f'-l {option[2:]}' if option.startswith('--') else f'-s {option[1:]}'
      yield f"complete -c stmoe -n '__fish_seen_subcommand_from {name}' {flag}"
  yield (f"complete -c stmoe -n '__fish_seen_subcommand_from {' '.join(EXPERIMENTS)}' "
         f"-a '{' '.join(experiments)}'")


def _options():
  """dict command -> its options, those of all commands included."""
  found = {}
  for name in main.commands():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    importlib.import_module(f'stmoe.cli.{name}').add_arguments(parser)
    own = [text for action in parser._actions for text in action.option_strings]
    found[name] = sorted({*own, '--plugin', '--debug'})
  return found
