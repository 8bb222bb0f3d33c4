"""MixER (arXiv:2502.05335): what its released scripts set.

Released: ddrous/MixER, examples/*/main_mixer.py, commit e9a1bb9.
None stands for a number that is not at hand. No table of the paper was at hand, and no parameter counts.
"""

# experts, expert network and its hidden width, depth (linear maps); context of all experts together, and
# whether they split it; environments; outer steps; environments of a loss; inner steps between gate updates.
EXAMPLES = {
    'ode_bench': dict(experts=10, inner='geps', d_ff=64, depth=3, context=40, split=True, environments=160,
                      outer=1500, contributors=16, every=1),
    'lotka_volterra': dict(experts=3, inner='geps', d_ff=256, depth=4, context=6, split=True, environments=9,
                           outer=5000, contributors=3, every=5),
    'glycolytic': dict(experts=3, inner='coda', d_ff=202, depth=3, context=6, split=True, environments=9,
                       outer=500, contributors=3, every=5),
    # Taylor order 2 and a pool of 2 contexts in the script, which are not built here.
    'selkov': dict(experts=3, inner='ncf', d_ff=128, depth=3, hidden=32, context=768, split=True,
                   environments=21,
                   outer=1000, contributors=7, every=5),
    'synthetic_control': dict(experts=3, inner='shplrnn', d_ff=32, depth=None, context=10, split=False,
                              environments=600, outer=500, contributors=600, every=1),
    'epilepsy': dict(experts=2, inner='shplrnn', d_ff=16, depth=None, context=10, split=False, least=0.5,
                     environments=80, outer=500, contributors=40, every=1),
}

# inner: steps of each kind in an outer step. AdaBelief; at thirds of the training the model's rate falls.
OPTIM = dict(inner=12, rate=1e-3, factor=0.4, at=(1 / 3, 2 / 3), proximal=10.0)
GATE = dict(noise=1e-4, iterations=20, tolerance=1e-4)
LOSS = dict(l1=1e-3, reweighted=False)

# Families of examples/ode_bench; constants within 10 % of the usual ones, 4 first states (32 in the test).
FAMILIES = ('harmonic', 'damped_harmonic', 'pendulum', 'damped_double_well', 'bead_on_hoop', 'shear_flow',
            'van_der_pol', 'van_der_pol_simple', 'glycolytic', 'duffing')
DATA = dict(spread=0.1, trajectories=4, held_out=32, length=None, step=None)
