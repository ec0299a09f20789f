"""The graph of a step: ops over symbolic shapes, fusion, the memory plan, and the program that they become."""
