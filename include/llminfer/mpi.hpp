// Ranks as processes that mpirun has started. Link llminfer::mpi.
#pragma once

#include <memory>

#include <llminfer/communicator.hpp>

namespace llminfer::inline v0 {

/// The ranks of MPI_COMM_WORLD; every process calls it, once or more often, in the same order. Initializes MPI unless
/// the host has done so, and then finalizes it when the last such Communicator goes, after which there can be no other;
/// MPI waits there for all ranks to come as far. A host that initializes MPI itself does it with MPI_THREAD_SERIALIZED
/// or more, and calls MPI while an engine runs only if it has MPI_THREAD_MULTIPLE. A rank that destroys its
/// Communicator is peer_lost to the others. One that crashes takes all with it: mpirun ends the processes, and MPI has
/// no way to go on. Errors: unsupported (threads), invalid_state (MPI was finalized), io_error (MPI's own message).
LLMINFER_API Result<std::shared_ptr<Communicator>> make_mpi_communicator();

}  // namespace llminfer::inline v0
