"""AW-MoE (Gong et al., 2023, arXiv:2306.05011, ICDE 2023): what is known of the paper.

Verified are the abstract's words. Experts and gate read the behaviour sequence, the gate by a gate unit and
an activation unit. Sequences are masked at random, and a contrastive loss acts on the gate's output. Gains
are larger for users with short histories. There is no code. Equations, hence the model, are this project's
reconstruction (unverified). None is what is not given.
"""

# No width, rate or coefficient was found.
PAPER = dict(d_model=None, num_experts=None, expert=None, length=None, masked=None, temperature=None,
             contrast=None, rate=None, batch_size=None)
# What this project starts from instead.
START = dict(d_model=16, num_experts=4, hidden=(32,), expert=(64, 32), length=20, masked=0.5, temperature=0.1,
             contrast=0.05, rate=1e-3, batch_size=512)
