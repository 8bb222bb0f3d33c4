"""Hooks of MkDocs: adds the pages that are made, and moves links to where their targets are in the site."""

import base64

from mkdocs.structure.files import File

import cells
import methods
import reference
import repository

# Place of a page in the site -> where it lies in the repository: its links are relative to that.
ORIGINS: dict[str, str] = {}


def on_files(files, config):
  """Returns `files` with all pages that lie outside of docs/, that are made, or that a page links to."""
  ORIGINS.clear()
  methods.known.cache_clear()
  methods.homes.cache_clear()
  for file in files.documentation_pages():
    ORIGINS[file.src_uri] = f'docs/{file.src_uri}'
  for origin, place in repository.elsewhere().items():
    _elsewhere(files, config, origin, place)
  for place, text in reference.pages().items():
    _add(files, config, place, text, place)
  _follow(files, config)
  return files


def on_page_markdown(markdown, page, config, files):
  """Returns the text of a page as the site has it: completed, with links that lead to pages of the site."""
  place = page.file.src_uri
  return repository.linked(_whole(place, markdown), ORIGINS[place], place)[0]


def _whole(place, text):
  """The text of a page with the part that is made of the repository."""
  folder, _, name = place.rpartition('/')
  if folder == 'methods':
    text += '\n' + (methods.index() if name == methods.INDEX else methods.page(name.removesuffix('.md')))
  return text


def _elsewhere(files, config, origin, place):
  text = (repository.ROOT / origin).read_text(encoding='utf-8')
  if origin.endswith('.ipynb'):
    text, pictures = cells.page(text, place.rpartition('/')[2].removesuffix('.md'))
    for name, data in pictures.items():
      files.append(File.generated(config, f'notebooks/{name}', content=base64.b64decode(data)))
  _add(files, config, place, text, origin)


def _add(files, config, place, text, origin):
  files.append(File.generated(config, place, content=text))
  ORIGINS[place] = origin


def _follow(files, config):
  """Adds what pages link to, and what those pages link to, until every link has its target."""
  waiting = list(files.documentation_pages())
  while waiting:
    page = waiting.pop()
    text = _whole(page.src_uri, page.content_string)
    for path in repository.linked(text, ORIGINS[page.src_uri], page.src_uri)[1]:
      place = repository.place(path)
      if files.get_file_from_path(place) is not None:
        continue
      text = repository.shown(path)
      if text is None:
        files.append(File.generated(config, place, abs_src_path=str(repository.ROOT / path)))
        continue
      _add(files, config, place, text, path)
      waiting.append(files.get_file_from_path(place))
