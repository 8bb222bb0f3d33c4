"""STUN (Lee et al., 2024, arXiv:2409.06211): what the abstract, the released code and its commands say."""

# The published command of Snowflake Arctic: 35 layers of 128 experts, of which 3570 of 4480 stay.
ARCTIC = dict(layers=35, experts=128, left=3570, by='coactivation', normed=False, threshold=0.5, most=127,
              means=2)
SCRIPT = dict(move=0.1, means=0, patience=10)    # defaults of the script
OWL = dict(spread=0.08, outlier=5)               # as recorded with the code
# 40 % sparsity of a model of 480B parameters with nearly no loss, GSM8K included; one H100, two hours.
REPORTED = dict(sparsity=0.4, parameters=480e9, hours=2)
