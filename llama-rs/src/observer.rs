//! Who watches a computation node by node.
//!
//! [`NodeObserver`] is the Rust side of llama.cpp's tensor trace; `docs/safety.md` has the whole contract.

use std::any::{Any, TypeId};
use std::cell::UnsafeCell;
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomPinned;
use std::num::NonZeroU64;
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
/// 2. for each ubatch [`graph_begin`](NodeObserver::graph_begin), and then for those of its nodes that
///    [are wanted](NodeObserver::is_wanted), in the order of the computation, [`before`](NodeObserver::before) and
///    [`after`](NodeObserver::after),
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

    /// A graph begins: one ubatch. A change of the KV cache that llama.cpp puts off until a decode (a shift) is a graph, too,
    /// which reads no token embedding.
    fn graph_begin(&mut self, graph: &GraphRef<'_>) {
        let _ = graph;
    }

    /// Whether [`before`](NodeObserver::before) and [`after`](NodeObserver::after) are to be called for a node. Nodes that
    /// are not wanted cost nothing. Asked after `graph_begin` for every node of a new graph; of graphs with an
    /// [id](GraphRef::id) the answers are kept.
    fn is_wanted(&mut self, node: NodeRef<'_>) -> bool {
        let _ = node;
        true
    }

    /// Nodes are about to be computed: several where the CPU backend fuses them into one computation, of which at least one is
    /// wanted. Nodes that compute nothing, such as views, are left out.
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

/// A graph that is about to be computed.
#[derive(Clone, Copy, Debug)]
pub struct GraphRef<'a> {
    nodes: &'a [NodeRef<'a>],
    id: Option<NonZeroU64>,
}

impl<'a> GraphRef<'a> {
    /// All nodes, those included that compute nothing.
    pub fn nodes(&self) -> &'a [NodeRef<'a>] {
        self.nodes
    }

    /// Tells a graph that is computed again: graphs of one process with the same id have the same nodes, which read the same
    /// tensors. While a model decodes token by token llama.cpp computes one graph again and again.
    pub fn id(&self) -> Option<NonZeroU64> {
        self.id
    }
}

/// Nodes that are about to be computed, whose indices can be read.
#[derive(Clone, Copy, Debug)]
pub struct Pending<'a> {
    nodes: &'a [NodeRef<'a>],
    index: usize,
}

impl<'a> Pending<'a> {
    /// # Safety
    ///
    /// The sources of the first node are complete, and nothing changes its indices for 'a.
    pub(crate) unsafe fn new(nodes: &'a [NodeRef<'a>], index: usize) -> Pending<'a> {
        Pending { nodes, index }
    }

    /// Place of the first of them in [`GraphRef::nodes`].
    pub fn index(&self) -> usize {
        self.index
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

/// Graphs for which it is known which nodes are wanted: those of decoding, of prompts, and some to spare.
const N_MASKS: usize = 8;

/// Which nodes of a graph are wanted, a byte each.
#[derive(Debug)]
struct Mask {
    id: Option<NonZeroU64>,
    wanted: Vec<u8>,
}

/// What the callbacks work on.
#[derive(Debug)]
struct Observed<O> {
    observer: O,
    /// C reads the bytes of one while it computes that graph.
    masks: Vec<Mask>,
    /// Where the nodes of the current graph are listed.
    nodes_address: usize,
}

impl<O: NodeObserver> Observed<O> {
    /// Tells the observer of a graph. Gives a byte for each of its nodes, 0 where it is not wanted; they stay until the next call.
    fn graph_begin(&mut self, graph: &GraphRef<'_>) -> *const u8 {
        self.nodes_address = graph.nodes.as_ptr().addr();
        self.observer.graph_begin(graph);
        let known = self
            .masks
            .iter()
            .find(|mask| mask.id.is_some() && mask.id == graph.id);
        if let Some(mask) = known {
            return mask.wanted.as_ptr();
        }
        let wanted = graph
            .nodes
            .iter()
            .map(|&node| u8::from(self.observer.is_wanted(node)));
        let wanted: Vec<u8> = wanted.collect();
        if self.masks.len() == N_MASKS {
            self.masks.remove(0);
        }
        self.masks.push(Mask {
            id: graph.id,
            wanted,
        });
        self.masks[self.masks.len() - 1].wanted.as_ptr()
    }
}

/// An observer with the failures of its callbacks: the `user_data` of the C callbacks.
pub(crate) struct ObserverState<O> {
    /// Borrowed by one callback at a time: all of them run on the thread that decodes.
    observed: UnsafeCell<Observed<O>>,
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
            observed: UnsafeCell::new(Observed {
                observer,
                masks: Vec::new(),
                nodes_address: 0,
            }),
            failure: FailureSlot::new(),
            _pinned: PhantomPinned,
        })
    }

    /// The C interface for this type of observer; its functions expect [`user_data`](ObserverState::user_data).
    pub(crate) fn interface() -> sys::ggml_backend_cpu_trace_i {
        sys::ggml_backend_cpu_trace_i {
            graph: Some(on_graph::<O>),
            before: Some(on_before::<O>),
            after: Some(on_after::<O>),
        }
    }

    /// What C passes back to the callbacks. Valid while `self` lives.
    pub(crate) fn user_data(self: &Pin<Box<Self>>) -> *mut c_void {
        std::ptr::from_ref::<Self>(self).cast_mut().cast()
    }

    /// Runs `body` on the observer unless a callback has panicked; keeps a panic under the name `callback`.
    ///
    /// # Safety
    ///
    /// No other call for this state is running.
    #[inline]
    unsafe fn call<T>(
        &self,
        callback: &'static str,
        body: impl FnOnce(&mut Observed<O>) -> T,
    ) -> Option<T> {
        if self.failure.is_set() {
            return None;
        }
        self.failure.catch(callback, || {
            // SAFETY: the caller promises that nobody else borrows the observer.
            body(unsafe { &mut *self.observed.get() })
        })
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
            self.call("NodeObserver::step_begin", |observed| {
                observed.observer.step_begin(step);
            });
        }
    }

    unsafe fn step_end(&self, step: &Step<'_>, is_complete: bool) {
        // SAFETY: as the caller promises.
        unsafe {
            self.call("NodeObserver::step_end", |observed| {
                observed.observer.step_end(step, is_complete);
            });
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
        Box::new(state.observed.into_inner().observer)
    }
}

/// # Safety
///
/// `user_data` is NULL, or the state of an observer of this type, which stays for 'a.
#[inline]
unsafe fn state_of<'a, O>(user_data: *mut c_void) -> Option<&'a ObserverState<O>> {
    // SAFETY: as the caller promises.
    unsafe { user_data.cast::<ObserverState<O>>().as_ref() }
}

/// # Safety
///
/// `nodes` is NULL, or `n_nodes` nodes of a graph, none of them NULL, which stay as they are for 'a.
#[inline]
unsafe fn nodes_of<'a>(nodes: *const *mut sys::ggml_tensor, n_nodes: i32) -> &'a [NodeRef<'a>] {
    let n_nodes = usize::try_from(n_nodes).unwrap_or(0);
    if nodes.is_null() {
        return &[];
    }
    // SAFETY: as the caller promises; a `NodeRef` is a pointer to a tensor.
    unsafe { std::slice::from_raw_parts(nodes.cast::<NodeRef<'_>>(), n_nodes) }
}

unsafe extern "C" fn on_graph<O: NodeObserver + 'static>(
    uid: u64,
    nodes: *const *mut sys::ggml_tensor,
    n_nodes: i32,
    user_data: *mut c_void,
) -> *const u8 {
    // SAFETY: registered together with its state, which the `Context` frees only after the C context. ggml passes the nodes
    // of the graph that it is going to compute; they outlive this call.
    let (state, nodes) = unsafe { (state_of::<O>(user_data), nodes_of(nodes, n_nodes)) };
    let id = NonZeroU64::new(uid);
    let wanted = state.and_then(|state| {
        // SAFETY: ggml calls back on thread 0 only, one call at a time, inside of llama_decode, for which `decode` waits.
        unsafe {
            state.call("NodeObserver::graph_begin", |observed| {
                observed.graph_begin(&GraphRef { nodes, id })
            })
        }
    });
    wanted.unwrap_or(std::ptr::null())
}

unsafe extern "C" fn on_before<O: NodeObserver + 'static>(
    nodes: *const *mut sys::ggml_tensor,
    n_nodes: i32,
    user_data: *mut c_void,
) {
    // SAFETY: as in `on_graph`; no thread changes a tensor's description during a compute.
    let (state, nodes) = unsafe { (state_of::<O>(user_data), nodes_of(nodes, n_nodes)) };
    let Some(state) = state else { return };
    // SAFETY: as in `on_graph`.
    unsafe {
        state.call("NodeObserver::before", |observed| {
            let offset_bytes = nodes.as_ptr().addr().wrapping_sub(observed.nodes_address);
            // SAFETY: thread 0 has not begun with these nodes, and all threads have finished those before them. Operations
            // with indices do not write to them, whatever the other threads have begun.
            let pending = Pending::new(nodes, offset_bytes / size_of::<NodeRef<'_>>());
            observed.observer.before(&pending);
        });
    }
}

unsafe extern "C" fn on_after<O: NodeObserver + 'static>(
    nodes: *const *mut sys::ggml_tensor,
    n_nodes: i32,
    user_data: *mut c_void,
) {
    // SAFETY: as in `on_before`.
    let (state, nodes) = unsafe { (state_of::<O>(user_data), nodes_of(nodes, n_nodes)) };
    let Some(state) = state else { return };
    // SAFETY: as in `on_graph`.
    unsafe {
        state.call("NodeObserver::after", |observed| {
            observed.observer.after(nodes);
        });
    }
}
