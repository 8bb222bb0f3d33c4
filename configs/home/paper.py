"""HoME (Wang et al., 2024, arXiv:2408.05430), and what it is compared with: MMoE and PLE.

MMoE: Ma et al., KDD 2018. PLE and CGC: Tang et al., RecSys 2020. Those two have no number in arXiv. None is
what is not given. No parameter counts are at hand.
"""

# MMoE, on synthetic data: features, experts of one layer, their units, units of a tower. Shared-bottom is
# made equal in parameters (unverified arithmetic: 13,056 / (100 + 16)).
SYNTHETIC = dict(num_features=100, num_experts=8, units=16, tower=(8,), shared_bottom=113,
                 rates=(1e-4, 1e-3, 1e-2), optimizer='adam')
# PLE's synthetic data: the same recipe, a and b from N(0, 1), c = 1, m = 10, d = 512.
PLE_SYNTHETIC = dict(num_features=512, sines=10, scale=1.0, num_rows=1_400_000)
PLE = dict(tower=(256, 128, 64), expert_layers=1, num_levels=2)

# HoME: over 400 features and online learning; widths, numbers of experts and optimizer were not found.
HOME = dict(features=400, units=None, meta=None, shared=None, specific=None, category=None, common=None,
            optimizer=None)

# Census-income, AUC, means of 400 runs (MMoE): two tasks each.
CENSUS = dict(
    income=dict(single=(0.9337, 0.9922), shared_bottom=(0.9295, 0.9921), omoe=(0.9319, 0.9923),
                mmoe=(0.9359, 0.9927)),
    college=dict(single=(0.8792, 0.9922), shared_bottom=(0.8813, 0.9917), omoe=(0.8813, 0.9912),
                 mmoe=(0.8826, 0.9924)))
# Video (PLE): AUC of VTR, squared error of VCR.
VIDEO = dict(single=(0.6787, 0.1321), hard_sharing=(0.6740, 0.1320), mmoe=(0.6803, 0.1319),
             ml_mmoe=(0.6815, 0.1329), cgc=(0.6832, 0.1320), ple=(0.6831, 0.1307))
