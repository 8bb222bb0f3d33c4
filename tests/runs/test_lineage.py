"""The ancestry of a run as text, of several generations and several parents."""

import json

from stmoe.runs import lineage


def parent(run, step, made=None):
  return dict(run=run, step=step, config='0123456789' if step else None, checkpoint=None, made=made)


def test_every_generation_has_its_lines(tmp_path):
  assert list(lineage.lines(tmp_path)) == []
  found = [dict(method='prune', options=dict(keep=0.5), parents=[parent('/c', 40, made=1)]),
           dict(method='upcycle', options={}, parents=[parent('/b', 1000, made=2), parent('/a', 20)]),
           dict(method='convert', options=dict(family='t5'), parents=[parent('/hf', None)])]
  (tmp_path / 'ancestry.json').write_text(json.dumps(dict(facts={}, lineage=found)))
  assert list(lineage.lines(tmp_path)) == [
      'made by prune (keep=0.5) of',
      '  /c, step 40 (config 01234567)',
      '    made by upcycle of',
      '      /b, step 1,000 (config 01234567)',
      '        made by convert (family=t5) of',
      '          /hf',
      '            made elsewhere',
      '      /a, step 20 (config 01234567)',
      '        trained from nothing']
