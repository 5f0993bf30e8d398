# From PVH's 32-bit entry to 64-bit Rust: page tables that map the first 64 GiB as they are, SSE, an interrupt table whose
# one handler acknowledges the interrupt and returns, and a stack.
    .section .note.Xen, "a", @note
    .long 4, 4, 18              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

    .section .text.start, "ax"
    .code32
    .globl pvh_start
pvh_start:
    cli
    cld
    movl %ebx, %ebp             # the start information
    movl $level4, %edi          # clears the page tables
    movl $((2 + 64) * 1024), %ecx
    xorl %eax, %eax
    rep stosl
    movl $(level3 + 7), level4
    movl $level3, %edi          # 64 entries of 1 GiB, each with a table of its own
    movl $(level2 + 7), %eax
    movl $64, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $level2, %edi          # pages of 2 MiB, which every CPU has
    movl $0x87, %eax
    xorl %edx, %edx
    movl $(64 * 512), %ecx
2:  movl %eax, (%edi)
    movl %edx, 4(%edi)
    addl $0x200000, %eax
    adcl $0, %edx
    addl $8, %edi
    loop 2b
    movl $level4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax            # PAE, and SSE with its exceptions
    movl %eax, %cr4
    movl $0xc0000080, %ecx      # EFER.LME
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    andl $~4, %eax              # no emulation of the FPU
    orl $0x80000003, %eax
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long_start

    .code64
long_start:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movabsq $stack_top, %rsp
    movq $interrupt_table, %rdi # the same gate 256 times
    movq $on_interrupt, %rax
    movl $256, %ecx
3:  movw %ax, (%rdi)
    movw $8, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    movq %rax, %rdx
    shrq $16, %rdx
    movw %dx, 6(%rdi)
    movq $0, 8(%rdi)
    addq $16, %rdi
    loop 3b
    # A fault is no interrupt: it is told and ends the guest, else it would come again for ever.
    movq $interrupt_table, %rdi
    movq $on_fault, %rax
    movl $32, %ecx
4:  movw %ax, (%rdi)
    movq %rax, %rdx
    shrq $16, %rdx
    movw %dx, 6(%rdi)
    addq $16, %rdi
    loop 4b
    lidt table_pointer
    movl %ebp, %edi
    call guest_main
5:  cli
    hlt
    jmp 5b

on_interrupt:
    pushq %rax
    movb $0x20, %al
    outb %al, $0xa0
    outb %al, $0x20
    btrl $9, 24(%rsp)           # interrupts stay off: a device that still asks would come again for ever
    popq %rax
    iretq
on_fault:
    movq %cr2, %rdi
    movq 8(%rsp), %rsi
    andq $~15, %rsp
    call guest_fault
6:  hlt
    jmp 6b

    .section .rodata
    .align 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word 23
    .quad gdt
table_pointer:
    .word 4095
    .quad interrupt_table

    .bss
    .align 4096
level4: .skip 4096
level3: .skip 4096
level2: .skip 64 * 4096
interrupt_table: .skip 4096
    .skip 65536
stack_top:
    .text
