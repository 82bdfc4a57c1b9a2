//! The background executor of one core: a glommio executor beside the hot loop, for work that
//! blocks (segment preparation). Jobs go there by a queue and a wake, results come back through a
//! queue and a wake of the hot loop's ring.
//!
//! A glommio executor can park although a wake-up was meant for it, so [`Background::nudge`] is
//! called from the hot loop's tick as long as a job is open.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker as TaskWaker};
use std::thread::JoinHandle;

use anyhow::Context as _;
use crossbeam::channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use glommio::{LocalExecutorBuilder, Placement};

/// Jobs and results that may wait in the queues.
const QUEUE_MAX: usize = 64;

/// Work that blocks.
pub(super) type Job<R> = Box<dyn FnOnce() -> R + Send>;

/// The hot loop's handle on its background executor. Dropping it ends the executor after the
/// running job.
pub(super) struct Background<R: Send + 'static> {
    jobs: Option<Sender<Job<R>>>,
    results: Receiver<R>,
    parked: Arc<Mutex<Option<TaskWaker>>>,
    open: usize,
    thread: Option<JoinHandle<()>>,
}

impl<R: Send + 'static> Background<R> {
    /// Starts the executor thread of core `core`, pinned to `cpu`. `wake` is called after each
    /// finished job.
    pub(super) fn start(
        core: u16,
        cpu: usize,
        wake: impl Fn() + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (job_sender, job_receiver) = bounded::<Job<R>>(QUEUE_MAX);
        let (result_sender, results) = bounded::<R>(QUEUE_MAX);
        let parked = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&parked);
        let thread = std::thread::Builder::new()
            .name(format!("background-{core}"))
            .spawn(move || {
                let executor = LocalExecutorBuilder::new(Placement::Fixed(cpu))
                    .name(&format!("background-{core}"))
                    .io_memory(64 * 1024)
                    .make();
                match executor {
                    Ok(executor) => {
                        executor.run(serve(job_receiver, result_sender, slot, wake));
                    }
                    Err(error) => {
                        tracing::error!(target: "node", core, %error, "no background executor");
                    }
                }
            })
            .context("cannot start the background thread")?;
        Ok(Self { jobs: Some(job_sender), results, parked, open: 0, thread: Some(thread) })
    }

    /// Hands a job over, or gives it back when the executor is gone or its queue is full.
    pub(super) fn submit(&mut self, job: Job<R>) -> Result<(), Job<R>> {
        let Some(jobs) = &self.jobs else { return Err(job) };
        jobs.try_send(job).map_err(TrySendError::into_inner)?;
        self.open += 1;
        self.nudge();
        Ok(())
    }

    /// A finished job's result.
    pub(super) fn finished(&mut self) -> Option<R> {
        let result = self.results.try_recv().ok()?;
        self.open -= 1;
        Some(result)
    }

    /// Whether every job's result has been taken.
    #[cfg(test)]
    pub(super) const fn is_idle(&self) -> bool {
        self.open == 0
    }

    /// Wakes the executor if a job is open; harmless otherwise.
    pub(super) fn nudge(&self) {
        if self.open > 0 {
            wake_parked(&self.parked);
        }
    }
}

impl<R: Send + 'static> Drop for Background<R> {
    fn drop(&mut self) {
        self.jobs = None;
        // The executor may park at the very moment of the wake: wake until it is gone.
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() {
                wake_parked(&self.parked);
                while self.results.try_recv().is_ok() {}
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            if thread.join().is_err() {
                tracing::error!(target: "node", "the background executor panicked");
            }
        }
    }
}

fn wake_parked(slot: &Mutex<Option<TaskWaker>>) {
    let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(waker) = &*slot {
        waker.wake_by_ref();
    }
}

/// Runs jobs one after the other on glommio's blocking pool until the hot loop hangs up.
async fn serve<R: Send + 'static>(
    jobs: Receiver<Job<R>>,
    results: Sender<R>,
    parked: Arc<Mutex<Option<TaskWaker>>>,
    wake: impl Fn(),
) {
    while let Some(job) = next_job(&jobs, &parked).await {
        let result = glommio::executor().spawn_blocking(job).await;
        if results.send(result).is_err() {
            break;
        }
        wake();
    }
}

async fn next_job<R>(jobs: &Receiver<Job<R>>, parked: &Mutex<Option<TaskWaker>>) -> Option<Job<R>> {
    poll_fn(|context| {
        *parked.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        match jobs.try_recv() {
            Ok(job) => Poll::Ready(Some(job)),
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
        }
    })
    .await
}
