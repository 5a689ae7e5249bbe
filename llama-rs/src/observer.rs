//! Who watches a computation node by node.
//!
//! [`NodeObserver`] is the Rust side of llama.cpp's tensor trace; `docs/safety.md` has the whole contract.

use std::any::{Any, TypeId};
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomPinned;
use std::pin::Pin;

use llama_sys as sys;

use crate::accesses::Indices;
use crate::error::Error;
use crate::failure::FailureSlot;
use crate::step::Step;
use crate::tensors::NodeRef;

/// Watches every node that a context computes, on the thread that calls [`Context::decode`](crate::Context::decode).
///
/// For each decode the calls are
///
/// 1. [`step_begin`](NodeObserver::step_begin), before llama.cpp sees the batch,
/// 2. for each ubatch [`graph_begin`](NodeObserver::graph_begin), and then for its nodes, in the order of the computation,
///    [`before`](NodeObserver::before) and [`after`](NodeObserver::after),
/// 3. [`step_end`](NodeObserver::step_end).
///
/// The other threads wait in a barrier for what `before` and `after` take, so both must be short and must not wait. Reading
/// is all that they can do: results are the same, bit for bit, with and without an observer.
///
/// A panic in any of them is caught: the decode ends with [`Error::CallbackPanicked`], and until it returns none of
/// them is called again. The computation itself is not disturbed: what it has put into the KV cache stays there.
///
/// ```no_run
/// use llama_rs::{AccessReader, NodeObserver, Pending};
///
/// #[derive(Default)]
/// struct Consumed { reader: AccessReader, bytes: u64 }
///
/// impl NodeObserver for Consumed {
///     fn before(&mut self, pending: &Pending<'_>) {
///         self.reader.read(pending, |access| self.bytes += access.size_bytes);
///     }
/// }
///
/// # fn run(mut context: llama_rs::Context<'_>, batch: &llama_rs::Batch) -> llama_rs::Result<()> {
/// context.set_observer(Consumed::default())?;
/// context.decode(batch)?;
/// let consumed: Option<Consumed> = context.take_observer();
/// # Ok(())
/// # }
/// ```
pub trait NodeObserver: Send {
    /// A decode begins.
    fn step_begin(&mut self, step: &Step<'_>) {
        let _ = step;
    }

    /// A graph of `n_nodes` nodes begins: one ubatch. A change of the KV cache that llama.cpp puts off until a decode (a shift)
    /// is a graph, too, which reads no token embedding.
    fn graph_begin(&mut self, n_nodes: usize) {
        let _ = n_nodes;
    }

    /// Nodes are about to be computed: several where the CPU backend fuses them into one computation. Nodes that compute
    /// nothing, such as views, are left out.
    fn before(&mut self, pending: &Pending<'_>) {
        let _ = pending;
    }

    /// All threads have computed their part of the nodes that the last `before` was called with. From there to here is
    /// the time of the slowest thread, with its waits for pages. The other threads may be computing the next node.
    fn after(&mut self, nodes: &[NodeRef<'_>]) {
        let _ = nodes;
    }

    /// The decode ends; `is_complete` is false when it gives an error.
    fn step_end(&mut self, step: &Step<'_>, is_complete: bool) {
        let _ = (step, is_complete);
    }
}

/// Nodes that are about to be computed, whose indices can be read.
#[derive(Clone, Copy, Debug)]
pub struct Pending<'a> {
    nodes: &'a [NodeRef<'a>],
}

impl<'a> Pending<'a> {
    /// # Safety
    ///
    /// The sources of the first node are complete, and nothing changes its indices for 'a.
    pub(crate) unsafe fn new(nodes: &'a [NodeRef<'a>]) -> Pending<'a> {
        Pending { nodes }
    }

    /// The nodes: one, or those that are fused. There is at least one.
    pub fn nodes(&self) -> &'a [NodeRef<'a>] {
        self.nodes
    }

    /// Source `index` of the first node as the indices by which it selects slices: `GET_ROWS` has them in source 1,
    /// `MUL_MAT_ID` and `ADD_ID` in source 2. `None` for other operations and sources.
    pub fn indices(&self, index: usize) -> Option<Indices<'a>> {
        let node = self.nodes.first()?;
        let of_indices = match node.tensor().op {
            sys::GGML_OP_GET_ROWS => 1,
            sys::GGML_OP_MUL_MAT_ID | sys::GGML_OP_ADD_ID => 2,
            _ => return None,
        };
        let source = node.source(index).filter(|_| index == of_indices)?;
        // SAFETY: `new` was promised that the indices are complete and stay as they are.
        unsafe { Indices::new(source) }
    }
}

/// An observer with the failures of its callbacks: the `user_data` of the C callback.
pub(crate) struct ObserverState<O> {
    /// Borrowed by one callback at a time: all of them run on the thread that decodes.
    observer: UnsafeCell<O>,
    failure: FailureSlot,
    /// C holds the address.
    _pinned: PhantomPinned,
}

impl<O> fmt::Debug for ObserverState<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObserverState")
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl<O: NodeObserver + 'static> ObserverState<O> {
    pub(crate) fn new(observer: O) -> Pin<Box<Self>> {
        Box::pin(ObserverState {
            observer: UnsafeCell::new(observer),
            failure: FailureSlot::new(),
            _pinned: PhantomPinned,
        })
    }

    /// The C callback for this type of observer; it expects [`user_data`](ObserverState::user_data).
    pub(crate) fn callback() -> sys::ggml_backend_cpu_trace_callback {
        Some(on_trace::<O>)
    }

    /// What C passes back to the callback. Valid while `self` lives.
    pub(crate) fn user_data(self: &Pin<Box<Self>>) -> *mut c_void {
        std::ptr::from_ref::<Self>(self).cast_mut().cast()
    }

    /// Runs `body` on the observer unless a callback has panicked; keeps a panic under the name `callback`.
    ///
    /// # Safety
    ///
    /// No other call for this state is running.
    unsafe fn call(&self, callback: &'static str, body: impl FnOnce(&mut O)) {
        if self.failure.is_set() {
            return;
        }
        self.failure.catch(callback, || {
            // SAFETY: the caller promises that nobody else borrows the observer.
            body(unsafe { &mut *self.observer.get() });
        });
    }
}

/// An observer of any type, as the context keeps it: what is called once a decode.
pub(crate) trait AnyObserver: fmt::Debug + Send {
    /// # Safety
    ///
    /// No other call for this state is running.
    unsafe fn step_begin(&self, step: &Step<'_>);

    /// # Safety
    ///
    /// No other call for this state is running.
    unsafe fn step_end(&self, step: &Step<'_>, is_complete: bool);

    /// The first failure since the last call, as an error.
    fn take_error(&self) -> Option<Error>;

    /// Type of the observer.
    fn observer_type(&self) -> TypeId;

    /// The observer. C must not know the state any more.
    fn into_observer(self: Pin<Box<Self>>) -> Box<dyn Any>;
}

impl<O: NodeObserver + 'static> AnyObserver for ObserverState<O> {
    unsafe fn step_begin(&self, step: &Step<'_>) {
        // SAFETY: as the caller promises.
        unsafe {
            self.call("NodeObserver::step_begin", |observer| {
                observer.step_begin(step)
            })
        }
    }

    unsafe fn step_end(&self, step: &Step<'_>, is_complete: bool) {
        // SAFETY: as the caller promises.
        unsafe {
            self.call("NodeObserver::step_end", |observer| {
                observer.step_end(step, is_complete)
            })
        }
    }

    fn take_error(&self) -> Option<Error> {
        Some(self.failure.take()?.into_error(None))
    }

    fn observer_type(&self) -> TypeId {
        TypeId::of::<O>()
    }

    fn into_observer(self: Pin<Box<Self>>) -> Box<dyn Any> {
        // SAFETY: the address mattered only to C, which does not know it any more.
        let state = unsafe { Pin::into_inner_unchecked(self) };
        Box::new(state.observer.into_inner())
    }
}

unsafe extern "C" fn on_trace<O: NodeObserver + 'static>(
    event: sys::ggml_backend_cpu_trace_event,
    nodes: *const *mut sys::ggml_tensor,
    n_nodes: i32,
    user_data: *mut c_void,
) {
    // SAFETY: registered together with its state, which the `Context` frees only after the C context.
    let Some(state) = (unsafe { user_data.cast::<ObserverState<O>>().as_ref() }) else {
        return;
    };
    let n_nodes = usize::try_from(n_nodes).unwrap_or(0);
    if event == sys::GGML_BACKEND_CPU_TRACE_GRAPH {
        // SAFETY: ggml calls back on thread 0 only, one call at a time, inside of llama_decode, for which `decode` waits.
        unsafe {
            state.call("NodeObserver::graph_begin", |observer| {
                observer.graph_begin(n_nodes)
            })
        };
        return;
    }
    if nodes.is_null() {
        return;
    }
    // SAFETY: ggml passes `n_nodes` nodes of the graph that it computes, none of them NULL. They outlive this call, and no
    // thread changes a tensor's description during a compute. A `NodeRef` is a pointer to a tensor.
    let nodes = unsafe { std::slice::from_raw_parts(nodes.cast::<NodeRef<'_>>(), n_nodes) };
    if event == sys::GGML_BACKEND_CPU_TRACE_BEFORE {
        // SAFETY: thread 0 has not begun with these nodes, and all threads have finished those before them. Operations with
        // indices do not write to them, whatever the other threads have begun.
        let pending = unsafe { Pending::new(nodes) };
        // SAFETY: as above.
        unsafe { state.call("NodeObserver::before", |observer| observer.before(&pending)) };
    } else {
        // SAFETY: as above.
        unsafe { state.call("NodeObserver::after", |observer| observer.after(nodes)) };
    }
}
