//! From a model's path and a budget to a context that keeps to it.

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use llama_rs::{
    Backend, Context, ContextParams, LoadMode, LoadedWeight, LoraAdapter, Model, ModelParams,
    Prefetch, SliceProvider,
};

use crate::Budget;
use crate::arrivals::Arrivals;
use crate::counters::CountersSnapshot;
use crate::engine::{
    EngineError, EngineReport, Faults, ModelFiles, Preference, ReadError, open_engine,
    open_faulty_engine,
};
use crate::heap;
use crate::lookahead::Lookahead;
use crate::pinned::Pinned;
use crate::plan::{Demand, MemoryPlan, Pages, PlanError};
use crate::policy::{PolicyName, policy_for};
use crate::pool::{Census, Pool};
use crate::provider::{Ahead, Before, Loaded, Program, Provider, Pump};
use crate::region;
use crate::replay::{Kept, Recorder, Replay, ReplayReport};
use crate::slices::{DenseTensor, SliceId, Slices, TooManySlices};
use crate::weights::{Reading, WeightMemory};

/// Why a model cannot be paged.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// The budget does not do.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The budget does not even do for loading the model, so that nobody can say what a context would take.
    #[error(
        "a budget of {:.1} MiB is too small: loading the model alone takes {:.1} MiB; the smallest that works is told from --budget {}MiB on",
        mib(*budget_bytes), mib(*needed_bytes), needed_bytes.div_ceil(1 << 20)
    )]
    Loading {
        /// The budget.
        budget_bytes: u64,
        /// What the process takes until the model is loaded: itself, the heap, and weights that are always in memory.
        needed_bytes: u64,
    },
    /// The files cannot be read in the pager's way.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The model's tables.
    #[error(transparent)]
    Slices(#[from] TooManySlices),
    /// llama.cpp, or the model.
    #[error(transparent)]
    Llama(#[from] llama_rs::Error),
    /// A read of weights that stay in memory failed.
    #[error(transparent)]
    Read(#[from] Box<ReadError>),
    /// The system has no memory, or does not say how much there is.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

fn mib(size_bytes: u64) -> f64 {
    size_bytes as f64 / f64::from(1 << 20)
}

/// By how much two processes that do the same differ in what they hold. A smallest budget that is named has so much more.
const JITTER_BYTES: u64 = 2 << 20;

/// The margin's heap has so much for the work buffer of the CPU, which is larger for more threads.
const WORK_BYTES_IN_MARGIN: u64 = 8 << 20;

/// How a model is paged.
#[derive(Clone, Debug, Default)]
pub struct PagerOptions {
    /// All memory that the process may use for the model.
    pub budget: Budget,
    /// What is evicted.
    pub policy: PolicyName,
    /// Which experts are read before the router has picked them. Those of the next layer, while the device has nothing else to do.
    pub lookahead: Lookahead,
    /// Whether a start reads what the last run needed first, in that order, and while it still loads. Contexts of a model that was loaded
    /// without it do without it, too.
    pub replay: Replay,
    /// How it is read.
    pub reads: Preference,
    /// Memory of the process that is not for this model and counts in the budget; what loading adds to the heap is told from the
    /// model's metadata then. `None`: the anonymous memory that the process has when a context is attached, other models and
    /// contexts included.
    pub process_bytes: Option<u64>,
    /// Whether dense matrices are read when a context is attached, so that its plan decides how many of them stay in memory.
    /// So it is in any case for a model without experts, and where the budget may turn out too small for all of them: where it does
    /// not do for the dense weights, half as much again for a context, and the fewest slots.
    pub dense_on_demand: bool,
}

impl PagerOptions {
    /// This budget, and the default of everything else.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use pager::PagerOptions;
    ///
    /// let options = PagerOptions::with_budget("7GiB".parse()?);
    /// let with_lru = PagerOptions { policy: "lru".parse()?, ..options };
    /// assert_eq!(with_lru.budget.to_string(), "7516192768");
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_budget(budget: Budget) -> PagerOptions {
        PagerOptions {
            budget,
            ..PagerOptions::default()
        }
    }
}

/// A model whose dense weights are in memory and whose experts are read into slots. Of a model without experts, or one whose
/// dense weights exceed the budget, as many matrices are in memory as fit, and the others are read for each token.
///
/// ```no_run
/// use llama_rs::{Backend, ContextParams, ModelParams};
/// use pager::{PagedModel, PagerOptions};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let options = PagerOptions::with_budget("7GiB".parse()?);
/// let paged = PagedModel::load(&Backend::init(), "model.gguf", &ModelParams::default(), options)?;
/// let (mut context, pager) = paged.context(&ContextParams::default())?;
/// println!("{}", pager.plan());
/// # let _ = &mut context;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PagedModel {
    model: Model,
    files: Arc<ModelFiles>,
    slices: Slices,
    options: PagerOptions,
    budget_bytes: u64,
    /// What of the budget is not for the model, if that is not to be measured.
    process_bytes: Option<u64>,
    /// What loading takes of the heap.
    loading_bytes: u64,
    /// What the process takes until the model is loaded.
    needed_bytes: u64,
    /// From this budget on the dense weights are read while the model is loaded, so that none of them can be streamed; `None` if that is
    /// never so.
    at_once_from_bytes: Option<u64>,
    arrivals: Arc<Arrivals>,
    kept: Kept,
    /// Dense matrices that stay in memory, as the last plan has it.
    pinned: Mutex<Option<Arc<Pinned>>>,
}

impl PagedModel {
    /// Reads the dense weights of the model at `path`; their matrices not before [`attach`](PagedModel::attach) if they may have
    /// to be streamed, as in every model without experts. With [`ModelParams::repack`] weights that llama.cpp has repacked kernels
    /// for are repacked where they are, experts when they arrive in their slots. What `params` says of prefetch and load mode does
    /// not count.
    ///
    /// # Errors
    ///
    /// See [`PagerError`].
    pub fn load(
        backend: &Backend,
        path: impl AsRef<Path>,
        params: &ModelParams,
        options: PagerOptions,
    ) -> Result<PagedModel, PagerError> {
        PagedModel::load_with(
            backend,
            path,
            params,
            options,
            |_| ControlFlow::Continue(()),
        )
    }

    /// As [`load`](PagedModel::load), with progress as in [`Model::load_with`].
    ///
    /// # Errors
    ///
    /// As [`load`](PagedModel::load).
    pub fn load_with(
        backend: &Backend,
        path: impl AsRef<Path>,
        params: &ModelParams,
        options: PagerOptions,
        progress: impl FnMut(f32) -> ControlFlow<()>,
    ) -> Result<PagedModel, PagerError> {
        let path = path.as_ref();
        let before_bytes = match options.process_bytes {
            Some(bytes) => bytes,
            None => anonymous_outside()?,
        };
        let tables = gguf::ModelFiles::open(path).map_err(llama_rs::Error::from)?;
        let mut slices = Slices::new(&tables)?;
        let system = |what| move |source| PagerError::System { what, source };
        let budget_bytes = options
            .budget
            .resolve(tables.total_bytes())
            .map_err(system("it cannot be told how much memory is free"))?;
        let loading_bytes = heap::loading_bytes(&tables);
        let process_bytes = before_bytes + loading_bytes;
        let at_once_from_bytes = match options.dense_on_demand || slices.is_dense_on_demand() {
            true => None,
            false => Some(at_once_from(&slices, process_bytes)),
        };
        if at_once_from_bytes.is_none_or(|from_bytes| budget_bytes < from_bytes) {
            slices = slices.with_dense_on_demand();
        }
        let read = match slices.is_dense_on_demand() {
            true => slices.fixed_ranges(Pages::default().page_bytes),
            false => slices.dense_ranges(Pages::default().page_bytes),
        };
        let needed_bytes = process_bytes + read.iter().map(|range| range.size_bytes).sum::<u64>();
        if budget_bytes < needed_bytes {
            return Err(PagerError::Loading {
                budget_bytes,
                needed_bytes,
            });
        }
        let files = Arc::new(ModelFiles::open(
            tables.parts.iter().map(|part| part.path()),
        )?);
        // llama.cpp and the model have copies of their own.
        drop(tables);
        let kept = Kept::of(&options.replay, path, &files, &slices);
        let reading = match &kept.store {
            Some(_) => Reading::AtOnce(kept.pattern.as_ref()),
            None => Reading::WhenMapped,
        };
        let memory = WeightMemory::new(Arc::clone(&files), &slices, options.reads, reading);
        let memory = memory.map_err(|reason| PagerError::System {
            what: "the memory of dense weights",
            source: std::io::Error::other(reason),
        })?;
        let arrivals = Arc::clone(memory.arrivals());
        let params = ModelParams {
            prefetch: Prefetch::Selective,
            load_mode: LoadMode::Mmap,
            ..params.clone()
        };
        let model = Model::load_into(backend, path, &params, memory, progress)?;
        // Whoever has read the metadata has read ahead.
        drop_page_cache(model.files().parts.iter().map(|part| part.path()));
        Ok(PagedModel {
            model,
            files,
            slices,
            process_bytes: options.process_bytes,
            options,
            budget_bytes,
            loading_bytes,
            needed_bytes,
            at_once_from_bytes,
            arrivals,
            kept,
            pinned: Mutex::new(None),
        })
    }

    /// The model, to make contexts of.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Loads an adapter, for [`Context::set_lora`]. It is in memory as a whole, and the budget pays for it.
    ///
    /// # Errors
    ///
    /// As [`LoraAdapter::load`], and [`PagerError::System`] if the size of the file cannot be told.
    pub fn load_adapter(&mut self, path: impl AsRef<Path>) -> Result<LoraAdapter, PagerError> {
        let path = path.as_ref();
        let adapter = LoraAdapter::load(&mut self.model, path)?;
        let metadata = std::fs::metadata(path).map_err(|source| PagerError::System {
            what: "the size of the adapter",
            source,
        })?;
        if let Some(process_bytes) = &mut self.process_bytes {
            *process_bytes += metadata.len();
        }
        Ok(adapter)
    }

    /// A new context that reads its experts within the budget: [`Context::new`] and [`attach`](PagedModel::attach).
    ///
    /// # Errors
    ///
    /// As of these.
    pub fn context(&self, params: &ContextParams) -> Result<(Context<'_>, Pager), PagerError> {
        let mut context = Context::new(&self.model, params)?;
        let pager = self.attach(&mut context)?;
        Ok((context, pager))
    }

    /// Gives what is left of the budget to slots, and lets the context read its experts there. Reads the dense matrices that
    /// stay in memory, if that was left to the plan, and begins to read ahead those that do not. One context at a time: each one
    /// that is attached plans as if it were alone.
    ///
    /// # Errors
    ///
    /// [`PagerError::Plan`] when too little is left; it names the smallest budget that works. [`PagerError::Read`] if weights
    /// cannot be read.
    pub fn attach(&self, context: &mut Context<'_>) -> Result<Pager, PagerError> {
        self.attach_with(context, &self.options, self.budget_bytes, None)
    }

    /// As [`attach`](PagedModel::attach), with other options than those of loading, and faults between the device and everything
    /// that has to stand them: for tests.
    ///
    /// # Errors
    ///
    /// As [`attach`](PagedModel::attach).
    pub fn attach_faulty(
        &self,
        context: &mut Context<'_>,
        options: PagerOptions,
        faults: Faults,
    ) -> Result<Pager, PagerError> {
        let budget = options.budget.resolve(self.model.files().total_bytes());
        let budget_bytes = budget.map_err(|source| PagerError::System {
            what: "it cannot be told how much memory is free",
            source,
        })?;
        self.attach_with(context, &options, budget_bytes, Some(faults))
    }

    fn attach_with(
        &self,
        context: &mut Context<'_>,
        options: &PagerOptions,
        budget_bytes: u64,
        faults: Option<Faults>,
    ) -> Result<Pager, PagerError> {
        let plan = self.plan(context, budget_bytes)?;
        let pool_slices = plan.pool_slices(&self.slices);
        let policy = policy_for(options.policy, &pool_slices);
        let pool = Pool::new(pool_slices, &plan.class_slots(), policy);
        // Registering would allocate all slots at once, for little: docs/pager.md.
        let mut reads = Preference {
            register: false,
            ..options.reads
        };
        if self.slices.is_empty() {
            // All reads are ahead, and all are needed.
            reads.prefetch_depth = reads.depth;
            reads.prefetch_request_bytes_max = reads.request_bytes_max;
            reads.in_flight_bytes = u32::MAX;
        }
        let weights = self.model.weights();
        let pinned = self.pin(&plan, reads, &weights)?;
        let files = Arc::clone(&self.files);
        let (engine, report) = match faults {
            None => open_engine(files, None, reads)?,
            Some(faults) => open_faulty_engine(files, None, reads, faults)?,
        };
        let kept = match options.replay {
            Replay::Off => None,
            Replay::In(_) => Some(&self.kept),
        };
        let before = Before {
            ahead: Ahead::new(&self.slices, &options.lookahead),
            n_embd: self.model.n_embd() as usize,
            program: kept.and_then(|kept| {
                let pattern = kept.pattern.as_ref()?;
                let slices = pattern.program().into_iter().map(SliceId).collect();
                Some(Program::new(slices, pattern.n_first()))
            }),
            recorder: kept.and_then(|kept| {
                let store = kept.store.clone()?;
                Some(Recorder::new(store, self.slices.len()))
            }),
        };
        let provider = Provider::new(
            self.slices.clone(),
            &plan,
            pool,
            Loaded {
                weights,
                arrivals: Arc::clone(&self.arrivals),
                pinned,
            },
            engine,
            before,
        );
        let provider = Arc::new(provider.map_err(|source| PagerError::System {
            what: "no memory for slots",
            source,
        })?);
        context.set_slice_provider(Arc::clone(&provider))?;
        provider.start_reading();
        Ok(Pager {
            _pump: Pump::start(&provider),
            replay: kept.map_or(ReplayReport::Off, |kept| kept.report.clone()),
            provider,
            plan,
            report,
        })
    }

    /// Divides the budget, by what llama.cpp says of the context and by what the process holds.
    fn plan(&self, context: &Context<'_>, budget_bytes: u64) -> Result<MemoryPlan, PagerError> {
        let buffers = context.memory_breakdown()?;
        let extras = context.memory_extras()?;
        let n_vocab = u64::from(self.model.vocab().n_tokens());
        let kv_bytes = buffers.iter().map(|buffer| buffer.context_bytes).sum();
        let compute_bytes: u64 = buffers.iter().map(|buffer| buffer.compute_bytes).sum();
        let (process_bytes, jitter_bytes) = match self.process_bytes {
            Some(bytes) => {
                let repacked_bytes = llama_rs::repacked_bytes(&buffers);
                (bytes + self.loading_bytes + repacked_bytes, 0)
            }
            None => {
                heap::trim();
                // The KV cache was cleared, so it is there; compute buffers are not before they are used.
                (anonymous_outside()?.saturating_sub(kv_bytes), JITTER_BYTES)
            }
        };
        let demand = |process_bytes| Demand {
            kv_bytes,
            compute_bytes: compute_bytes + extras.work_bytes.saturating_sub(WORK_BYTES_IN_MARGIN),
            // Logits are kept twice, as numbers of four bytes; one output at a time is what generating takes.
            outputs_bytes: 8 * n_vocab,
            process_bytes,
            staging_bytes: 0,
            n_ubatch: context.n_ubatch(),
        };
        let new = |slices: &Slices, process_bytes| {
            MemoryPlan::new(
                slices,
                budget_bytes,
                &demand(process_bytes),
                Pages::default(),
            )
        };
        let named_bytes = process_bytes + jitter_bytes;
        let plan = new(&self.slices, named_bytes)
            .or_else(|error| new(&self.slices, process_bytes).map_err(|_| error));
        let mut error = match plan {
            Ok(plan) => return Ok(plan),
            Err(error) => error,
        };
        error.raise(self.needed_bytes);
        if self.slices.is_dense_on_demand()
            && let Some(from_bytes) = self.at_once_from_bytes
            && error.budget_min_bytes + jitter_bytes >= from_bytes
        {
            // With the budget that would be named all dense weights are read while the model is loaded.
            let at_once = self.slices.clone().with_dense_in_memory();
            if let Err(larger) = new(&at_once, named_bytes) {
                error = larger;
            }
            error.raise(from_bytes + jitter_bytes);
        }
        Err(error.into())
    }

    /// The matrices that the plan keeps in memory; reads them, unless that was done for an earlier plan.
    fn pin(
        &self,
        plan: &MemoryPlan,
        reads: Preference,
        weights: &[LoadedWeight],
    ) -> Result<Option<Arc<Pinned>>, PagerError> {
        let is_streamed = |index: &usize| match &plan.dense_stream {
            Some(stream) => stream.streamed.contains(index),
            None => false,
        };
        let stay = self
            .slices
            .on_demand()
            .filter(|(index, _)| !is_streamed(index));
        let stay: Vec<(usize, &DenseTensor)> = stay.collect();
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        if stay.is_empty() {
            *pinned = None;
            return Ok(None);
        }
        if let Some(known) = pinned.as_ref().filter(|known| known.holds(&stay)) {
            return Ok(Some(Arc::clone(known)));
        }
        // Both would not fit.
        *pinned = None;
        let (engine, _) = open_engine(Arc::clone(&self.files), None, reads)?;
        let packing_of = |tensor: &DenseTensor| self.slices.packing(weights, tensor.tensor);
        let read = Arc::new(Pinned::read(&self.files, &stay, engine, packing_of)?);
        Ok(Some(Arc::clone(pinned.insert(read))))
    }
}

/// The slots of a context: what was planned, and what happens.
pub struct Pager {
    /// Before the provider.
    _pump: Option<Pump>,
    replay: ReplayReport,
    provider: Arc<Provider>,
    plan: MemoryPlan,
    report: EngineReport,
}

impl fmt::Debug for Pager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pager")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl Pager {
    /// What lives where.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// How slices are read, and why so.
    pub fn reads(&self) -> &EngineReport {
        &self.report
    }

    /// What was known of the last run.
    pub fn replay(&self) -> &ReplayReport {
        &self.replay
    }

    /// What happened so far.
    pub fn counters(&self) -> CountersSnapshot {
        self.provider.counters().snapshot()
    }

    /// What the engine has done so far.
    pub fn read_counters(&self) -> crate::engine::Counters {
        self.provider.engine_counters()
    }

    /// Where the slots are, when the reads under way have ended. After a decode that went well nothing is pinned; one that
    /// failed leaves pins, which the next one takes away.
    pub fn census(&self) -> Census {
        self.provider.census()
    }

    /// Why the last decode failed, if nobody has asked yet.
    pub fn take_reason(&self) -> Option<String> {
        self.provider.take_reason()
    }
}

/// Resident anonymous memory of this process that is not in regions, which a plan counts by their size.
fn anonymous_outside() -> Result<u64, PagerError> {
    resident::anonymous_outside(&region::mapped()).map_err(|source| PagerError::System {
        what: "/proc/self/smaps",
        source,
    })
}

/// The budget from which on the dense weights are taken to fit before there is a context: beside them there is room for a context half
/// as large as they are, and for the slots of 512 tokens.
fn at_once_from(slices: &Slices, process_bytes: u64) -> u64 {
    let demand = Demand {
        kv_bytes: slices.dense_bytes() / 2,
        compute_bytes: 0,
        outputs_bytes: 0,
        process_bytes,
        staging_bytes: 0,
        n_ubatch: 512,
    };
    MemoryPlan::budget_min_bytes(slices, &demand, Pages::default())
}

/// Gives back what the page cache holds of the files. Advice: whoever else has them mapped keeps them.
fn drop_page_cache<'a>(paths: impl Iterator<Item = &'a Path>) {
    for file in paths.filter_map(|path| std::fs::File::open(path).ok()) {
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
}
