// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several threads in the data path at once.

use std::{sync::Barrier, thread};

use super::Lab;

/// Runs `work(thread)` on `threads` threads, all in the lab's namespace, all starting together; what each returned.
///
/// # Panics
///
/// When one of them does.
pub fn together<T: Send>(lab: &Lab, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(threads);
    thread::scope(|scope| {
        let start = |number| {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                let _entered = lab.namespace.enter().expect("the namespace");
                barrier.wait();
                work(number)
            })
        };
        let threads: Vec<_> = (0..threads).map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    })
}
