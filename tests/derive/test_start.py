"""The record of where a run came from: lineages of parents are joined, and outlive them."""

from stmoe import files
from stmoe.derive import start as starts
from stmoe.runs import records


def known(run, made=None):
  return dict(run=run, step=3, config=None, checkpoint=None, made=made)


def made(method, *parents):
  return dict(method=method, options={}, parents=list(parents))


def test_lineages_of_several_parents_are_joined(tmp_path):
  first = [made('a', known('/x', made=1)), made('b', known('/y'))]
  second = [made('c', known('/z', made=1)), made('d', known('/w'))]
  bare = lambda run: {key: value for key, value in known(run).items() if key != 'made'}
  parents = [(bare('/p'), first), (bare('/q'), []), (bare('/r'), second)]
  whole = starts.origin('mix', dict(noise=float('nan')), parents, dict(gap=0.5))
  files.write_json(tmp_path / 'ancestry.json', whole)
  found = records.ancestry(tmp_path)
  assert found == whole and found['facts'] == dict(gap=0.5)
  lineage = found['lineage']
  assert [entry['method'] for entry in lineage] == ['mix', 'a', 'b', 'c', 'd']
  of = lambda number: [(parent['run'], parent['made']) for parent in lineage[number]['parents']]
  assert of(0) == [('/p', 1), ('/q', None), ('/r', 3)]
  assert of(1) == [('/x', 2)] and of(2) == [('/y', None)] and of(3) == [('/z', 4)] and of(4) == [('/w', None)]


def test_what_a_run_keeps_is_copied_again_after_a_kill(tmp_path):
  run, new = tmp_path / 'run', tmp_path / 'new'
  for folder in (run / 'source', new / 'source'):                    # the second is of a call that was killed
    folder.mkdir(parents=True)
  (run / 'source' / 'config.json').write_text('{}')
  starts.inherit(new, run, ['source'])
  assert (new / 'source' / 'config.json').read_text() == '{}'
