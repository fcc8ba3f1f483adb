"""What the kernels become on an H100 and on an MI250, found without either: ``python tests/kernels/compiled.py``.

One line of JSON per kernel and target. Triton brings NVIDIA's ``cuobjdump`` along, which tells registers and spills
and shows the machine code; AMD's assembly says these of itself.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from site_agent.trainer.kernels import blocks
from site_agent.trainer.kernels.reference import BlockCoded

TARGETS = {"sm_90": GPUTarget("cuda", 90, 32), "gfx90a": GPUTarget("hip", "gfx90a", 64)}
POINTERS = {
    "after_ptr": "*fp32",
    "before_ptr": "*fp32",
    "residual_ptr": "*fp32",
    "codes_ptr": "*u8",
    "scales_ptr": "*fp32",
}


def compiled(encoding: BlockCoded, target: str, fuses: bool) -> dict[str, str | bytes]:
    constants = blocks.constants(encoding)
    signature = {**POINTERS, "num_rows": "i32"} | {name: "constexpr" for name in constants}
    attributes = {
        (index,): [["tt.divisibility", 16]] for index in range(len(POINTERS))
    }  # torch aligns to more
    source = ASTSource(blocks.encode_rows, signature, constants, attributes)
    options = blocks.OPTIONS | ({"enable_fp_fusion": True} if fuses else {})
    return dict(triton.compile(source, target=TARGETS[target], options=options).asm)


def on_nvidia(asm: dict[str, str | bytes]) -> dict[str, object]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])  # type: ignore[arg-type]
        file.flush()
        used, code = (
            subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    loads = re.findall(r"\b((?:LDG|STG|LDL|STL)[.\w]*)", code)
    ptx = str(asm["ptx"])
    return {
        "registers": int(re.findall(r"REG:(\d+)", used)[0]),
        "stack": int(re.findall(r"STACK:(\d+)", used)[0]),
        "spills": sum(one.startswith(("LDL", "STL")) for one in loads),
        "memory": {one: loads.count(one) for one in sorted(set(loads))},
        "fused": len(re.findall(r"\bfma\.rn\.f32", ptx)),
        "fused_in_code": len(re.findall(r"\bFFMA", code)),
        "ieee_divisions": len(re.findall(r"\bdiv\.rn\.f32", ptx)),
        "flushes_subnormals": ".ftz" in ptx,
    }


def on_amd(asm: dict[str, str | bytes]) -> dict[str, object]:
    code = str(asm["amdgcn"])
    loads = re.findall(r"\b((?:global_load|global_store|buffer_load|buffer_store|scratch)[_\w]*)", code)
    return {
        "registers": int(re.findall(r"\.vgpr_count:\s*(\d+)", code)[0]),
        "stack": int(re.findall(r"\.private_segment_fixed_size:\s*(\d+)", code)[0]),
        "spills": int(re.findall(r"\.vgpr_spill_count:\s*(\d+)", code)[0]),
        "memory": {one: loads.count(one) for one in sorted(set(loads))},
        "fused": len(re.findall(r"\bv_(?:pk_)?fma(?:c)?_f32", code)),
        "ieee_divisions": len(re.findall(r"\bv_div_fixup_f32", code)),
        "flushes_subnormals": re.findall(r"\.amdhsa_float_denorm_mode_32 (\d)", code) != ["3"],
    }


def main() -> None:
    encodings: tuple[BlockCoded, ...] = ("int8", "int4")
    for encoding in encodings:
        for target in sys.argv[1:] or TARGETS:
            for fusion in (False, True):
                asm = compiled(encoding, target, fusion)
                found = on_nvidia(asm) if target.startswith("sm") else on_amd(asm)
                print(json.dumps({"encoding": encoding, "target": target, "fusion": fusion, **found}))


if __name__ == "__main__":
    main()
