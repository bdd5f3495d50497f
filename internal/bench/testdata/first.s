# The workload of ampoule bench boot. It writes what the clocks showed at its first instruction, and with an argument also
# what its CPU clock showed after each of three loops: arithmetic, system calls, pages touched for the first time. first.bin:
#   as -o first.o first.s && objcopy -O binary -j .text first.o first.bin
	.globl _start
_start:
	mov	(%rsp), %rbx		# argc
	sub	$128, %rsp
	mov	%rsp, %rbp		# the next struct timespec
	mov	$7, %edi		# CLOCK_BOOTTIME
	call	stamp
	mov	$2, %edi		# CLOCK_PROCESS_CPUTIME_ID
	call	stamp
	cmp	$1, %rbx
	jbe	done

	mov	$0x1000000, %ecx	# 2^24 rounds of xorshift*
	mov	$1, %eax
	mov	$0x2545f4914f6cdd1d, %r8
1:	mov	%rax, %rdx
	shr	$12, %rdx
	xor	%rdx, %rax
	mov	%rax, %rdx
	shl	$25, %rdx
	xor	%rdx, %rax
	mov	%rax, %rdx
	shr	$27, %rdx
	xor	%rdx, %rax
	imul	%r8, %rax
	dec	%ecx
	jnz	1b
	mov	$2, %edi
	call	stamp

	mov	$0x10000, %ebx		# 2^16 times getppid
2:	mov	$110, %eax
	syscall
	dec	%ebx
	jnz	2b
	mov	$2, %edi
	call	stamp

	mov	$9, %eax		# mmap of 16 MiB
	xor	%edi, %edi
	mov	$0x1000000, %esi
	mov	$3, %edx		# PROT_READ|PROT_WRITE
	mov	$0x22, %r10d		# MAP_PRIVATE|MAP_ANONYMOUS
	mov	$-1, %r8
	xor	%r9d, %r9d
	syscall
	mov	%rax, %rbx
	mov	%rax, %rdi
	mov	$0x1000000, %esi
	mov	$15, %edx		# MADV_NOHUGEPAGE
	mov	$28, %eax		# madvise
	syscall
	mov	$4096, %ecx
3:	movb	$1, (%rbx)
	add	$4096, %rbx
	dec	%ecx
	jnz	3b
	mov	$2, %edi
	call	stamp

done:	mov	$1, %edi		# write
	mov	$1, %eax
	mov	%rsp, %rsi
	mov	%rbp, %rdx
	sub	%rsp, %rdx
	syscall
	xor	%edi, %edi
	mov	$60, %eax		# exit
	syscall

stamp:	mov	$228, %eax		# clock_gettime
	mov	%rbp, %rsi
	syscall
	add	$16, %rbp
	ret
