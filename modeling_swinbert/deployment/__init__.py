"""From a trained model to where it is used: the Hub, ONNX Runtime, eight bits."""
