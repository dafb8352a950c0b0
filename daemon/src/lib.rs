//! Turns the effects of the engine into system calls and completions into events.
