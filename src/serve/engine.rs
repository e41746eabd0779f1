//! The thread that owns the model: requests of all clients in one batch, tokens back to each.
//!
//! Every adapter has its own batch on the one base; the batches take turns, a step each. A client that is gone, or whose
//! time is over, leaves its batch at the next step.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::metrics::Metrics;
use crate::decode::{self, Batch, Constraint, Event, Request, Settings};
use crate::model::Qwen2;
use crate::tensor::threads;

/// The model with its adapters, and what is decoded at once.
pub struct Engine {
    pub model: Qwen2,
    /// What requests can be answered by, by number: an adapter's name on the model, or the base alone.
    pub adapters: Vec<Option<String>>,
    pub batch_size: usize,
    pub end_tokens: Vec<u32>,
    pub constraint: Arc<Constraint>,
}

/// What a client is told.
#[derive(Debug)]
pub enum Update {
    /// A token, the end of the answer, or both.
    Event(Event),
    /// No answer comes: the time is over.
    TimedOut,
    /// No answer comes: why not, and whether it is the request's fault.
    Failed { message: String, is_request: bool },
}

/// A request on its way to the engine.
#[derive(Debug)]
pub struct Job {
    pub adapter: usize,
    pub request: Request,
    pub updates: UnboundedSender<Update>,
    pub deadline: Instant,
    /// Held until the job is over.
    pub place: Place,
}

/// The way to the engine. Cloning shares it; the engine ends when all are gone and its work is done.
#[derive(Clone, Debug)]
pub struct Queue {
    jobs: Sender<Job>,
    places: Arc<AtomicUsize>,
    n_places: usize,
}

/// A place in the queue, free again when it is dropped.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Queue {
    /// A queue of `n_places`, running requests included, and its end for the engine.
    pub fn new(n_places: usize) -> (Self, Receiver<Job>) {
        let (jobs, receiver) = channel();
        (Self { jobs, places: Arc::default(), n_places }, receiver)
    }

    /// A place, unless all are taken.
    pub fn place(&self) -> Option<Place> {
        let n_taken = self.places.fetch_add(1, Ordering::SeqCst);
        let place = Place(Arc::clone(&self.places));
        (n_taken < self.n_places).then_some(place)
    }

    /// Requests under way.
    pub fn n_taken(&self) -> usize {
        self.places.load(Ordering::SeqCst)
    }

    /// Sends a job; false when the engine is gone.
    pub fn send(&self, job: Job) -> bool {
        self.jobs.send(job).is_ok()
    }
}

/// A job in a batch.
struct Client {
    adapter: usize,
    updates: UnboundedSender<Update>,
    deadline: Instant,
    _place: Place,
}

/// Runs until every [`Queue`] is gone and the last job is over.
pub fn run(mut engine: Engine, jobs: &Receiver<Job>, metrics: &Metrics) {
    // Without it the work is done all the same, with more waiting.
    let _pool = threads::own_pool();
    let mut batches: Vec<Batch> = engine.adapters.iter().map(|_| engine.new_batch()).collect();
    let mut clients: HashMap<u64, Client> = HashMap::new();
    let (mut next_key, mut turn, mut is_open) = (0, 0, true);
    while is_open || !clients.is_empty() {
        // Waits for work only where there is none.
        if clients.is_empty() {
            match jobs.recv() {
                Ok(job) => engine.take(job, &mut next_key, &mut batches, &mut clients),
                Err(_) => break,
            }
        }
        loop {
            match jobs.try_recv() {
                Ok(job) => engine.take(job, &mut next_key, &mut batches, &mut clients),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    is_open = false;
                    break;
                }
            }
        }
        drop_the_gone(&mut batches, &mut clients, metrics);
        tell_queue(&batches, metrics);
        let Some(adapter) = (0..batches.len()).map(|n| (turn + n) % batches.len()).find(|&n| !batches[n].is_idle())
        else {
            continue;
        };
        turn = adapter + 1;
        let started = Instant::now();
        let selected = engine.model.select_adapter(engine.adapters[adapter].as_deref());
        let stepped = selected.map_err(decode::Error::from).and_then(|()| batches[adapter].step(&mut engine.model));
        match stepped {
            Ok(events) => {
                metrics.step(batches[adapter].n_running(), events.len(), started.elapsed());
                for event in events {
                    let is_over = event.answer.is_some();
                    if let Some(client) = clients.get(&event.key) {
                        let key = event.key;
                        // A client that is gone is dropped before the next step.
                        let _ = client.updates.send(Update::Event(event));
                        if is_over {
                            clients.remove(&key);
                        }
                    }
                }
            }
            Err(error) => {
                let message = error.to_string();
                // The batch may be in any state: all of its clients are told, and it starts anew.
                batches[adapter] = engine.new_batch();
                clients.retain(|_, client| {
                    if client.adapter == adapter {
                        let _ = client.updates.send(Update::Failed { message: message.clone(), is_request: false });
                    }
                    client.adapter != adapter
                });
            }
        }
        tell_queue(&batches, metrics);
    }
}

fn tell_queue(batches: &[Batch], metrics: &Metrics) {
    metrics.queue(batches.iter().map(Batch::n_running).sum(), batches.iter().map(Batch::n_waiting).sum());
}

impl Engine {
    fn new_batch(&self) -> Batch {
        Batch::new(Settings {
            batch_size: self.batch_size,
            end_tokens: self.end_tokens.clone(),
            constraint: Some(Arc::clone(&self.constraint)),
        })
    }

    fn take(&self, job: Job, next_key: &mut u64, batches: &mut [Batch], clients: &mut HashMap<u64, Client>) {
        let Job { adapter, request, updates, deadline, place } = job;
        let key = *next_key;
        *next_key += 1;
        let submitted = match batches.get_mut(adapter) {
            Some(batch) => batch.submit(&self.model, key, request),
            None => Err(decode::Error::NoConstraint),
        };
        match submitted {
            Ok(()) => drop(clients.insert(key, Client { adapter, updates, deadline, _place: place })),
            Err(error) => {
                let _ = updates.send(Update::Failed { message: error.to_string(), is_request: true });
            }
        }
    }
}

/// Takes clients that have left, or whose time is over, out of their batches.
fn drop_the_gone(batches: &mut [Batch], clients: &mut HashMap<u64, Client>, metrics: &Metrics) {
    let now = Instant::now();
    clients.retain(|&key, client| {
        let has_left = client.updates.is_closed();
        if !has_left && now < client.deadline {
            return true;
        }
        if has_left {
            metrics.client_left();
        } else {
            let _ = client.updates.send(Update::TimedOut);
        }
        // Only memory could fail here, and a copy within it does not take any.
        if let Some(batch) = batches.get_mut(client.adapter) {
            let _ = batch.cancel(key);
        }
        false
    });
}

/// How long a client should wait before it asks again: the time that `n_ahead` requests take at the present rate.
pub fn retry_after(n_ahead: usize, batch_size: usize, mean_latency: Duration) -> Duration {
    let rounds = n_ahead as f64 / batch_size.max(1) as f64;
    Duration::from_secs_f64((mean_latency.as_secs_f64() * rounds).clamp(1.0, 60.0))
}
