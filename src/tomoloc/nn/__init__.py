"""Networks: tensors in, tensors out. They know no tomogram and no file but their own folder."""
