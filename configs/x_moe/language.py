r"""X-MoE's cosine router in its published forms, and the perturbed one, in LibMoE's language model.

X-MoE (arXiv:2204.09179) and its perturbed form (arXiv:2405.14131), in the model of LibMoE (arXiv:2411.00918).
Expected: nothing is printed for this model. With two softmaxes (libmoe, perturbed_libmoe) weights are even
whatever is learned (paper.DOUBLE_SOFTMAX); method=x_moe beside libmoe shows what that is worth.
Differs: C4/en instead of SlimPajama; RMSNorm; initial values of attention and routers are this project's;
experts' vectors are normalised in the graph, not in place.

  stmoe train x_moe/language --workdir runs/x_moe
  stmoe train x_moe/language:method=libmoe            two softmaxes, fixed temperature
  stmoe compare x_moe/language:method=x_moe x_moe/language:method=libmoe --seeds 0,1,2
  stmoe train x_moe/language:smoke                    laptop, about a minute
  method = x_moe | libmoe | torchscale | tutel | perturbed | perturbed_libmoe
"""

from stmoe.configs import arguments
from stmoe.configs import common
from stmoe.configs.libmoe import paper as libmoe
from stmoe.configs.libmoe import recipe
from stmoe.configs.x_moe import paper

METHODS = dict(
    x_moe=('x_moe', {}), libmoe=('x_moe', paper.LIBMOE), torchscale=('x_moe', paper.TORCHSCALE),
    tutel=('x_moe', paper.TUTEL), perturbed=('perturbed_cosine', paper.PERTURBED),
    perturbed_libmoe=('perturbed_cosine', dict(paper.LIBMOE, **paper.PERTURBED)))
VARIANTS = tuple(f'method={method}' for method in METHODS if method != 'x_moe')


def get_config(arg=''):
  args = arguments.parse(arg, smoke=False, method='x_moe')
  router, fields = common.choose('method', args.method, METHODS)
  losses = dict(balance=0.0, z=0.0, entropy=libmoe.BALANCE)
  c = recipe.language(recipe.sparse(router, **fields), losses)
  return recipe.smoke(c) if args.smoke else c.lock()
