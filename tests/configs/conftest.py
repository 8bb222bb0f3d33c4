"""The table of published parameter counts beside ours, at the end of a run that evaluated them."""


def pytest_terminal_summary(terminalreporter):
  reports = [r for outcome in ('passed', 'failed') for r in terminalreporter.stats.get(outcome, ())]
  told = [pair for r in reports for pair in getattr(r, 'user_properties', ())]
  rows = sorted(value for key, value in told if key == 'parameters')
  if rows:
    terminalreporter.section('parameters')
    terminalreporter.line(f'{"experiment":44} {"paper":>18} {"ours":>18} {"ours/paper":>10}')
    for name, printed, count in rows:
      terminalreporter.line(f'{name:44} {printed:18,.0f} {count:18,} {count / printed:10.4f}')
