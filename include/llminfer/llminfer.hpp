// The whole public API of llminfer but that of libraries of their own: cuda.hpp, hip.hpp, gpu.hpp, mpi.hpp.
#pragma once

#include <llminfer/cancel.hpp>
#include <llminfer/chat.hpp>
#include <llminfer/communicator.hpp>
#include <llminfer/completion.hpp>
#include <llminfer/config.hpp>
#include <llminfer/engine.hpp>
#include <llminfer/options.hpp>
#include <llminfer/quantize.hpp>
#include <llminfer/result.hpp>
#include <llminfer/sampling.hpp>
#include <llminfer/session.hpp>
#include <llminfer/tokenizer.hpp>
