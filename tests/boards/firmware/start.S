# Runs main() and writes what it returned, with bit 10 set, to the first word of the SoC's memory.
.section .text.start
.global _start
_start:
  la sp, stack_top
  la t0, bss_start
  la t1, bss_end
clear:
  bgeu t0, t1, run
  sw zero, 0(t0)
  addi t0, t0, 4
  j clear
run:
  call main
  li t0, 0x40000000
  ori a0, a0, 0x400
  sw a0, 0(t0)
end:
  j end
