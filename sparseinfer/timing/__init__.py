"""What decides by time: clocks, comparisons, what is kept of them, and the cost model."""
