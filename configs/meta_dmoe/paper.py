"""Facts of "Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from Mixture-of-Experts".

arXiv:2210.03885. SIZES are those of the released configurations (n3il666/Meta-DMoE). RESULTS are of table 1
as its repository copies the table: mean and deviation. Backbones are pre-trained on ImageNet.
"""

SIZES = {
    'iwildcam': dict(num_experts=10, backbone='ResNet-50', d_model=2048, size=40, support=24,
                     aggregator_rate=1e-6, student_rate=3e-5, inner_rate=3e-4, epochs=20),
    'camelyon17': dict(num_experts=5, backbone='DenseNet-121', d_model=1024, size=96, support=64,
                       aggregator_rate=1e-6, student_rate=1e-4, inner_rate=1e-3, epochs=10),
    'rxrx1': dict(num_experts=3, backbone='ResNet-50', d_model=2048, size=123, support=75,
                  aggregator_rate=3e-6, student_rate=1e-6, inner_rate=1e-4, epochs=10),
    'fmow': dict(num_experts=4, backbone='DenseNet-121', d_model=1024, size=112, support=64,
                 aggregator_rate=1e-6, student_rate=1e-5, inner_rate=1e-4, epochs=30),
}
DEPTH, HEADS, DROPOUT, INNER_STEPS = 1, 16, 0.1, 1                   # of the aggregator; of all data sets
DECAY = 0.96                       # of both rates, after every epoch
ADAM = dict(name='adamw', b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0)
RESULTS = {'erm': dict(iwildcam=(71.6, 2.5), camelyon17=(70.3, 6.4), rxrx1=(29.9, 0.4)),
           'unmasked': dict(iwildcam=(74.1, 0.4), camelyon17=(90.8, 1.3), rxrx1=(29.6, 0.5)),
           'meta_dmoe': dict(iwildcam=(77.2, 0.3), camelyon17=(91.4, 1.5), rxrx1=(29.8, 0.4))}
PARAMS = None                      # no table prints them
