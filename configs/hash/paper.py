"""Hash Layers For Large Sparse Models (Roller et al., 2021, arXiv:2106.04426): what the paper says.

None is what is not known. `(unverified)` marks what was not checked against the paper or its code;
`computed` is what our model of the stated widths has, where the paper prints another count.
"""

# The dense baseline. Its count is verified, its layers are not: 11 (unverified) decoder layers of these
# widths would have 147M. 17 make both counts that are verified, 222M with 8,008 ids and 266M with 51,200.
WIDTHS = dict(d_model=1024, d_ff=4096, num_heads=16, head_dim=64, layers=17)
DENSE = dict(
    base=dict(WIDTHS, params=222e6),
    # Widths and depths of the 755M baselines are not known: these are this project's, for their count.
    wider=dict(WIDTHS, d_model=2048, d_ff=6512, num_heads=32, params=755e6),
    deeper=dict(WIDTHS, layers=59, params=755e6, computed=751e6),
)

# Sparse layers x experts -> parameters. Derivation: 222M + 8.39M for each expert after a layer's first.
SIZES = {
    '1x16': dict(layers=1, experts=16, params=348e6),      # (derived)
    '1x32': dict(layers=1, experts=32, params=482e6),      # (derived)
    '1x64': dict(layers=1, experts=64, params=751e6),
    '1x128': dict(layers=1, experts=128, params=1.28e9, computed=1.288e9),   # printed digits are cut off
    '5x16': dict(layers=5, experts=16, params=852e6),      # (unverified)
}
SPARSE_LAYER = 7                   # 0-based index of the sparse layer in the stack: the reference's default
FIVE = None                        # places of the five sparse layers
SEED = 42                          # of the reference's random table

# Vocabularies of the data sets; 51,200 and the sizes of Wikitext-103 are (unverified).
VOCABS = dict(reddit=8008, roberta=51200, wikitext=8008, wikitext_words=267739)
ROBERTA = dict(dense=266e6, hash=794e6)    # RoBERTa + cc100en: dense, Hash 1x64 (ours has 795.2M)

# Training; optimizer and schedule are (unverified), batch and context are unknown.
OPTIM = dict(optimizer='adam', schedule='inverse square root', warmup_steps=10_000, peak=2e-3, clip=0.1,
             dropout=0.0, steps=100_000, steps_large=40_000, batch=None, length=None)

# The 4.5B comparison: a BASE model (arXiv:2103.16716) whose BASE layer becomes a Hash layer, or three of a
# third of the size. Widths are as in BASE's backbone; 32 experts of 3 F (derived) make the 4.5B.
LARGE = dict(d_model=2048, d_ff=8192, num_heads=16, head_dim=128, layers=24, experts=32, sublayers=3,
             vocab=51200, params=4.5e9)

# Perplexity on Reddit, (valid, test).
REPORTED = {
    'dense 222M': (24.90, 24.96),            # test (unverified)
    'dense wider 755M': (23.32, 23.38),      # (unverified)
    'dense deeper 755M': (22.72, 22.78),     # (unverified)
    'switch 1x64': (23.65, 23.73),
    'hash 1x64 balanced': (23.16, 23.23),
    'switch 1x128': (23.52, 23.58),
    'hash 1x128': (22.89, 22.95),            # valid: read from the figure
    'hash + ladder x3 1x64': (21.96, None),
    'ladder x3 222M': (23.90, None),
}
# Valid perplexity by experts of one sparse layer, read from the authors' figure: (Switch, Hash).
BY_EXPERTS = {16: (24.00, 24.00), 32: (23.79, 23.58), 64: (23.65, 23.16), 128: (23.52, 22.89)}

# Which hash, 1x64: kind of our router -> (valid, test).
KINDS = dict(
    balanced=(23.16, 23.23), random=(23.22, 23.27), dispersed=(23.17, 23.22), clustered=(23.90, 23.99),
    previous=(24.16, 24.22), bigram=(24.19, 24.28), position=(25.07, 25.14), future=(1.97, 1.97),
)
PREDICTED_FUTURE = (25.02, 25.09)            # (unverified); needs a second, trained model: no experiment here
# RoBERTa + cc100en: Hash 1x64 26.99, Switch about 27.4 (splits and Switch unverified). 4.5B after 40k
# updates, from the figure: BASE 11.4, Hash 10.2, three Hash layers 10.1; Hash does 11 % more updates/s.
# MultiHash: always better than one hash, by a few hundredths to a tenth (magnitude unverified).

PARAMETERS = (
    ('hash/sizes:size=dense', DENSE['base']['params'], 1e6),
    ('hash/sizes:size=wider', DENSE['wider']['params'], 1e6),
    ('hash/sizes:size=1x16', SIZES['1x16']['params'], 1e6),
    ('hash/sizes:size=1x32', SIZES['1x32']['params'], 1e6),
    ('hash/sizes:size=1x64', SIZES['1x64']['params'], 1e6),
    ('hash/sizes:size=5x16', SIZES['5x16']['params'], 1e6),
    ('hash/multihash:n=2', SIZES['1x64']['params'], 1e6),
    ('hash/vocabulary:data=roberta,method=dense', ROBERTA['dense'], 1e6),
    ('hash/large', LARGE['params'], 1e8),
    ('hash/large:layers=3', LARGE['params'], 1e8),
)
COMPUTED = (
    ('hash/sizes:size=1x128', SIZES['1x128']['params'], SIZES['1x128']['computed'], 0.01),
    ('hash/sizes:size=deeper', DENSE['deeper']['params'], DENSE['deeper']['computed'], 0.01),
)
