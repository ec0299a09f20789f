"""The torch backend: every op of the contract, exact in float32, on whatever device torch has."""
