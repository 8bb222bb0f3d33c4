"""Facts of "Mixture of Weak & Strong Experts on Graphs" (arXiv:2311.05185) and of its released commands.

The rows of COMMANDS are the README of the code (facebookresearch/mowst-gnn). The paper's tables were not at
hand: that the mixture beats its GNN alone on the six graphs is from memory (u).
"""

# Dataset and GNN -> method ('mowst' takes turns, 'star' trains all together), who is trained before the
# mixture, hidden width, layers, learning rate and dropout before and in the mixture, features in the gate.
COMMANDS = {
    'flickr': dict(strong='gcn', method='mowst', first='strong', d_model=128, num_layers=3, rates=(0.1, 0.01),
                   dropouts=(0.3, 0.5), gate='dispersion'),
    'products': dict(strong='gcn', method='star', first='strong', d_model=256, num_layers=3,
                     rates=(0.01, 0.01), dropouts=(0.5, 0.5), gate='features'),
    'arxiv': dict(strong='gcn', method='star', first='strong', d_model=256, num_layers=3,
                  rates=(0.001, 0.001), dropouts=(0.2, 0.5), gate='features'),
    'penn94': dict(strong='gcn', method='star', first='strong', d_model=64, num_layers=2, rates=(0.1, 0.01),
                   dropouts=(0.1, 0.5), gate='dispersion'),
    'pokec': dict(strong='gcn', method='star', first='weak', d_model=64, num_layers=2, rates=(0.1, 0.001),
                  dropouts=(0.2, 0.3), gate='dispersion'),
    'twitch_gamer': dict(strong='gcn', method='mowst', first='none', d_model=64, num_layers=2,
                         rates=(0.1, 0.1), dropouts=(0.2, 0.1), gate='dispersion'),
    'arxiv_sage': dict(strong='sage', method='mowst', first='strong', d_model=512, num_layers=4,
                       rates=(0.01, 0.01), dropouts=(0.3, 0.5), gate='dispersion'),
    'products_sage': dict(strong='sage', method='star', first='weak', d_model=256, num_layers=3,
                          rates=(0.01, 0.01), dropouts=(0.1, 0.5), gate='features'),
}
WEIGHT_DECAY = dict(flickr=5e-4, products=0.0, arxiv=0.0, arxiv_sage=0.0, products_sage=0.0, penn94=1e-3,
                    pokec=1e-3, twitch_gamer=1e-3)
PATIENCE = 100                     # epochs without a better validation accuracy end a turn
BIG_EPOCHS = 10                    # pairs of turns without a gain end the training
DRAWS = 50                         # of who answers, in evaluation
ADAMW = dict(name='adamw', b1=0.9, b2=0.999, eps=1e-8)               # PyTorch's
# Nodes, directed edges, features and classes are those of the data, which the note does not print.
SIZES = None
