"""Ways to pack the tensors of a checkpoint in fewer bits: a file each, named as quant_method in config.json.

A file has a function `unpacked(tensors, section)`. It returns dict name -> `tensors.Rows` of the model's own
tensors, for dict name -> Tensor of what is stored and the fields of quantization_config. Nothing is read
before a tensor is.

A file whose tensors are written packed again, as MXFP4's are, has the dtype KIND of such tensors.
"""
