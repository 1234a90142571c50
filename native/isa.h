// Which instruction set runs, and its kernels.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace deepwell {

const Kernels& kernels();
std::vector<std::string> available_isas();  // best first
std::string isa();
void set_isa(const std::string& name);

}  // namespace deepwell
