//! Measurement, ignored by default: how long dropping entries takes, and how much a full log keeps.

use std::time::Instant;

use super::*;

/// Measures how long an append waits for dropping, and how much a full log keeps. Run it with
/// `cargo test --release -p hearsay-node --lib -- --ignored --nocapture how_long_dropping_takes`
#[test]
#[ignore = "a measurement of some minutes, for an optimised build"]
fn how_long_dropping_takes() {
    for per_run in [1, 64, 1000] {
        let mut bench = Bench::new();
        let mut writers = [Writer::new(1, 1), Writer::new(2, 1)];
        let (mut second, each) = (0, 50_000);
        let begun = Instant::now();
        while second < each {
            write(&mut bench, &mut writers, &mut second, per_run);
        }
        let full = bench.store.used_bytes().unwrap();
        println!("{per_run} a run: {} entries put in {:.2?}, {full} bytes", 2 * each, begun.elapsed());
        let enough = full / 2;
        drop_all("size", &mut bench, Bound { before: None, bytes: Some(enough) });
        for _ in 0..4 {
            for _ in 0..each / 4 / per_run {
                write(&mut bench, &mut writers, &mut second, per_run);
                if bench.store.used_bytes().unwrap() > enough {
                    let bound = Bound { before: None, bytes: Some(enough - enough / 20) };
                    while bench.store.drop_oldest(bound, log().as_ref()).unwrap().more {}
                }
            }
            let kept = bench.number("SELECT count(*) FROM log_records");
            let free = bench.number("SELECT freelist_count FROM pragma_freelist_count");
            println!(
                "  always full: {kept} records in {} bytes, {free} free pages",
                bench.store.used_bytes().unwrap()
            );
        }
        drop_all("age", &mut bench, Bound { before: Some(HybridTime(u64::MAX / 2)), bytes: None });
    }
}

fn write(bench: &mut Bench, writers: &mut [Writer; 2], second: &mut u64, per_run: u64) {
    writers.iter_mut().for_each(|writer| {
        bench.store.append_run(&writer.run(*second..*second + per_run), log().as_ref()).unwrap();
    });
    *second += per_run;
    // As under load, dozens of runs share a sync.
    if second.is_multiple_of(64) || per_run > 64 {
        bench.store.commit().unwrap();
    }
}

fn drop_all(what: &str, bench: &mut Bench, bound: Bound) {
    if bench.store.is_dirty() {
        bench.store.commit().unwrap();
    }
    let (mut steps, mut all) = (Vec::new(), Dropped::default());
    loop {
        let begun = Instant::now();
        let dropped = bench.store.drop_oldest(bound, log().as_ref()).unwrap();
        steps.push(begun.elapsed());
        (all.entries, all.runs) = (all.entries + dropped.entries, all.runs + dropped.runs);
        if !dropped.more {
            break;
        }
    }
    steps.sort();
    println!(
        "  by {what}: {} entries, {} runs in {} steps: p50 {:.2?}, p99 {:.2?}, longest {:.2?}; {} bytes left",
        all.entries,
        all.runs,
        steps.len(),
        steps[steps.len() / 2],
        steps[steps.len() * 99 / 100],
        steps[steps.len() - 1],
        bench.store.used_bytes().unwrap()
    );
}
