//! Development commands: lab, demo, test, bench, schema, dist.

fn main() {}
