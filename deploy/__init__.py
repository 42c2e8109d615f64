"""Export a network to the formats that production runs, and verify each export."""
