//! The store without threads, as in the simulation: tasks do the same, and nobody waits for a thread that is not there.

use std::time::Duration;

use super::*;

fn inline() -> Options {
    Options { workers: Workers::Inline(Arc::new(|| Duration::from_millis(5))), ..options() }
}
fn open_inline(files: &Arc<dyn Files>) -> Store {
    Store::open(&[directory()], inline(), files.clone(), &SeededRandom::new(1)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_mutation_is_durable_when_the_disk_had_its_time_and_not_before() {
    let (memory, files) = memory();
    let store = open_inline(&files);
    store.create(handle(1), version(1)).unwrap();
    let ticket = store.apply(handle(1), &append(1, pattern(1000, 1))).unwrap();
    memory.cut_power(&SeededRandom::new(0));
    tokio::time::timeout(Duration::from_secs(60), ticket).await.unwrap().unwrap_err();
    drop(store);

    let store = open_inline(&files);
    let serial = store.state(handle(1)).unwrap().serial.raw();
    let asked = tokio::time::Instant::now();
    store.apply(handle(1), &append(serial + 1, pattern(1000, 2))).unwrap().await.unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(5), "{:?}", asked.elapsed());
    memory.cut_power(&SeededRandom::new(0));
    drop(store);
    assert_eq!(open_inline(&files).state(handle(1)).unwrap().serial.raw(), serial + 1);
}

#[tokio::test(start_paused = true)]
async fn room_in_the_log_is_made_by_the_one_who_needs_it() {
    let (_memory, files) = memory();
    let store = open_inline(&files);
    store.create(handle(1), version(1)).unwrap();
    // Many times what the log holds, and no task gets its turn.
    for serial in 1..=100 {
        let data = pattern(65_000, serial);
        drop(store.apply(handle(1), &write(serial, (serial % 4) as u32 * 60_000, data)).unwrap());
    }
    assert_eq!(store.read(handle(1), 0, 60_000).unwrap().data, pattern(65_000, 100).slice(..60_000));
    store.close().unwrap();
    assert_eq!(open_inline(&files).state(handle(1)).unwrap().serial.raw(), 100);
}
