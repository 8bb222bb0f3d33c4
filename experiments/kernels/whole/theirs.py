"""The side of Hugging Face transformers, a script for an interpreter that has it: needs nothing of stmoe.

A job is dict(kind, folder, ...): 'make' writes the model of a `config` with random weights into the folder;
'train' and 'decode' open it and run when told (see `turns.Worker`).
"""

import json
import sys

import serving                           # beside this script
import torch
import transformers


def make(folder, config):
  """Writes a model of `config`, initialised with seed 0."""
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config))
  model.save_pretrained(folder)


def train(model, ids, rate):
  """Returns the function that takes one step of AdamW on ids [B,T], and returns its cross entropy."""
  optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, foreach=True)
  model.train()

  def step():
    optimizer.zero_grad(set_to_none=True)
    said = model(input_ids=ids, labels=ids)
    said.loss.backward()
    optimizer.step()
    balance = getattr(said, 'aux_loss', None)
    return (said.loss - (0 if balance is None else model.router_aux_loss_coef * balance)).item()
  return step


def decode(model, ids, length):
  """Returns the function that adds `length` ids to prompts [B,T], greedily, with a cache; it returns them."""
  model.eval()
  settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=length, pad_token_id=0)

  @torch.no_grad()
  def run():
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1]:].tolist()
  return run


def main(job):
  """Does the job; see the top of this file."""
  if job['kind'] == 'make':
    return make(job['folder'], job['config'])
  form = dict(experts_implementation=job['form']) if job['form'] else {}
  model = transformers.AutoModelForCausalLM.from_pretrained(job['folder'], dtype=torch.float32, **form)
  model.generation_config.eos_token_id = None
  ids = torch.tensor(job['ids'])
  run = train(model, ids, job['rate']) if job['kind'] == 'train' else decode(model, ids, job['length'])
  versions = {library.__name__: str(library.__version__) for library in (torch, transformers)}
  serving.serve(run, parameters=model.num_parameters(), versions=versions)


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
