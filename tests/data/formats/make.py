"""Writes the files of this folder with the packages `datasets` and `webdataset`.

They hold the documents TEXTS of tests/data_pipeline/text/test_documents.py. Versions 5.2.0 and 1.0.2 wrote
them. The tar holds texts as members .txt and, from the 20th on, as members .json.
"""

import pathlib

import datasets
import webdataset

HERE = pathlib.Path(__file__).parent
TEXTS = [f'Document {i}: ' + ' '.join(f'word{i * j % 7}é' for j in range(9)) for i in range(40)]


def tar(name):
  """Writes a tar of samples."""
  with webdataset.TarWriter(str(HERE / name), mtime=0) as writer:
    for i, text in enumerate(TEXTS):
      sample = dict(txt=text) if i < 20 else dict(json=dict(text=text))
      writer.write({'__key__': f'{i:06}', 'cls': i, **sample})


if __name__ == '__main__':
  data = datasets.Dataset.from_dict(dict(number=list(range(40)), text=TEXTS, other=[''] * 40))
  data.save_to_disk(str(HERE / 'saved'), num_shards=3)
  tar('webdataset.tar.gz')
