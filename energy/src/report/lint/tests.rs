//! Reports with one thing wrong each.
