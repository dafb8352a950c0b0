//! A few threads for what may block: opening, closing, discards, zeroing, and all I/O where there is no ring.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Something to run. Its result is sent to the loop.
type Job<T> = Box<dyn FnOnce() -> T + Send>;

/// The threads. Jobs are taken in order, by whichever thread is free. Bounded by the jobs that the engine has open.
pub(crate) struct Helper<T> {
    jobs: mpsc::Sender<Job<T>>,
    results: UnboundedReceiver<T>,
    /// Jobs whose result has not been taken.
    waiting: usize,
}

impl<T: Send + 'static> Helper<T> {
    /// Starts `threads` threads, named after the resource. They end when the helper is dropped and their last job is done.
    pub(crate) fn new(name: &str, threads: usize) -> std::io::Result<Helper<T>> {
        let (jobs, queue) = mpsc::channel::<Job<T>>();
        let (sender, results) = unbounded_channel();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let (queue, sender) = (Arc::clone(&queue), sender.clone());
            std::thread::Builder::new()
                // The kernel keeps 15 characters of a thread's name.
                .name(format!(
                    "disk-{}",
                    name.chars().take(10).collect::<String>()
                ))
                .spawn(move || work(&queue, &sender))?;
        }
        Ok(Helper {
            jobs,
            results,
            waiting: 0,
        })
    }

    /// Runs `job` on one of the threads.
    pub(crate) fn run(&mut self, job: impl FnOnce() -> T + Send + 'static) {
        if self.jobs.send(Box::new(job)).is_ok() {
            self.waiting += 1;
        }
    }

    /// The next result, if there is one. Registers for a wake-up if one is to come.
    pub(crate) fn poll(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<T> {
        if self.waiting == 0 {
            return std::task::Poll::Pending;
        }
        match self.results.poll_recv(context) {
            std::task::Poll::Ready(Some(result)) => {
                self.waiting -= 1;
                std::task::Poll::Ready(result)
            }
            std::task::Poll::Ready(None) | std::task::Poll::Pending => std::task::Poll::Pending,
        }
    }

    /// Jobs whose result has not been taken.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }
}

fn work<T>(queue: &Mutex<mpsc::Receiver<Job<T>>>, results: &UnboundedSender<T>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if results.send(job()).is_err() {
            return;
        }
    }
}
