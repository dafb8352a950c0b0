//! What the data path costs, measured side by side.
