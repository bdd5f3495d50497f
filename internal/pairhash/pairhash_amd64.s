#include "textflag.h"

// Two SHA-256 at once, of the same blocks (FIPS 180-4; Intel SDM, "SHA extensions"). The names of registers:
//
//	X0       words of the message and their constants, added: what SHA256RNDS2 takes from there
//	X1  X2   state a as ABEF and CDGH       X11 X12  the same before the block
//	X3  X4   state b as ABEF and CDGH       X13 X14  the same before the block
//	X5 - X8  the last sixteen words of the message, four in each
//	X9       scratch
//	X10      turns the bytes of four words round

// Four rounds of both states. X0 has the words and constants of two rounds in its lower half, and of the next two in its upper.
#define ROUNDS(w, k) \
	MOVOU       k(DX), X0;    \
	PADDD       w, X0;        \
	SHA256RNDS2 X0, X1, X2;   \
	SHA256RNDS2 X0, X3, X4;   \
	PSHUFD      $0x0e, X0, X0; \
	SHA256RNDS2 X0, X2, X1;   \
	SHA256RNDS2 X0, X4, X3

// The next four words of the message, from the last sixteen, into the register of the oldest, w0.
#define EXPAND(w0, w1, w2, w3) \
	SHA256MSG1 w1, w0;     \
	MOVO       w3, X9;     \
	PALIGNR    $4, w2, X9; \
	PADDD      X9, w0;     \
	SHA256MSG2 w3, w0

// Eight words in memory to ABEF and CDGH, and back.
#define LOAD(at, abef, cdgh) \
	MOVOU   (at), X9;              \
	MOVOU   16(at), cdgh;          \
	PSHUFD  $0xb1, X9, X9;         \
	PSHUFD  $0x1b, cdgh, cdgh;     \
	MOVO    X9, abef;              \
	PALIGNR $8, cdgh, abef;        \
	PBLENDW $0xf0, X9, cdgh

#define STORE(at, abef, cdgh) \
	PSHUFD  $0x1b, abef, X9;       \
	PSHUFD  $0xb1, cdgh, cdgh;     \
	MOVO    X9, abef;              \
	PBLENDW $0xf0, cdgh, abef;     \
	PALIGNR $8, X9, cdgh;          \
	MOVOU   abef, (at);            \
	MOVOU   cdgh, 16(at)

// func blocks(a, b *[8]uint32, p []byte)
TEXT ·blocks(SB), NOSPLIT, $0-40
	MOVQ a+0(FP), AX
	MOVQ b+8(FP), BX
	MOVQ p_base+16(FP), SI
	MOVQ p_len+24(FP), CX
	SHRQ $6, CX
	JZ   none
	LEAQ constants<>(SB), DX
	MOVOU turn<>(SB), X10
	LOAD(AX, X1, X2)
	LOAD(BX, X3, X4)

next:
	MOVO X1, X11
	MOVO X2, X12
	MOVO X3, X13
	MOVO X4, X14

	MOVOU  (SI), X5
	MOVOU  16(SI), X6
	MOVOU  32(SI), X7
	MOVOU  48(SI), X8
	PSHUFB X10, X5
	PSHUFB X10, X6
	PSHUFB X10, X7
	PSHUFB X10, X8

	ROUNDS(X5, 0)
	EXPAND(X5, X6, X7, X8)
	ROUNDS(X6, 16)
	EXPAND(X6, X7, X8, X5)
	ROUNDS(X7, 32)
	EXPAND(X7, X8, X5, X6)
	ROUNDS(X8, 48)
	EXPAND(X8, X5, X6, X7)
	ROUNDS(X5, 64)
	EXPAND(X5, X6, X7, X8)
	ROUNDS(X6, 80)
	EXPAND(X6, X7, X8, X5)
	ROUNDS(X7, 96)
	EXPAND(X7, X8, X5, X6)
	ROUNDS(X8, 112)
	EXPAND(X8, X5, X6, X7)
	ROUNDS(X5, 128)
	EXPAND(X5, X6, X7, X8)
	ROUNDS(X6, 144)
	EXPAND(X6, X7, X8, X5)
	ROUNDS(X7, 160)
	EXPAND(X7, X8, X5, X6)
	ROUNDS(X8, 176)
	EXPAND(X8, X5, X6, X7)
	ROUNDS(X5, 192)
	ROUNDS(X6, 208)
	ROUNDS(X7, 224)
	ROUNDS(X8, 240)

	PADDD X11, X1
	PADDD X12, X2
	PADDD X13, X3
	PADDD X14, X4
	ADDQ  $64, SI
	DECQ  CX
	JNZ   next

	STORE(AX, X1, X2)
	STORE(BX, X3, X4)

none:
	RET

// func hasExtensions() bool
TEXT ·hasExtensions(SB), NOSPLIT, $0-1
	MOVB $0, ret+0(FP)
	XORL AX, AX
	CPUID
	CMPL AX, $7
	JB   no
	MOVL $1, AX
	XORL CX, CX
	CPUID
	ANDL $0x80200, CX      // ECX bits 9 and 19: SSSE3, SSE4.1
	CMPL CX, $0x80200
	JNE  no
	MOVL $7, AX
	XORL CX, CX
	CPUID
	SHRL $29, BX           // EBX bit 29: SHA
	ANDL $1, BX
	MOVB BX, ret+0(FP)

no:
	RET

DATA turn<>+0(SB)/8, $0x0405060700010203
DATA turn<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL turn<>(SB), RODATA|NOPTR, $16

// FIPS 180-4, 4.2.2
DATA constants<>+0(SB)/8, $0x71374491428a2f98
DATA constants<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+16(SB)/8, $0x59f111f13956c25b
DATA constants<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+32(SB)/8, $0x12835b01d807aa98
DATA constants<>+40(SB)/8, $0x550c7dc3243185be
DATA constants<>+48(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+64(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+96(SB)/8, $0xa831c66d983e5152
DATA constants<>+104(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+120(SB)/8, $0x1429296706ca6351
DATA constants<>+128(SB)/8, $0x2e1b213827b70a85
DATA constants<>+136(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+144(SB)/8, $0x766a0abb650a7354
DATA constants<>+152(SB)/8, $0x92722c8581c2c92e
DATA constants<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+176(SB)/8, $0xd6990624d192e819
DATA constants<>+184(SB)/8, $0x106aa070f40e3585
DATA constants<>+192(SB)/8, $0x1e376c0819a4c116
DATA constants<>+200(SB)/8, $0x34b0bcb52748774c
DATA constants<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+224(SB)/8, $0x78a5636f748f82ee
DATA constants<>+232(SB)/8, $0x8cc7020884c87814
DATA constants<>+240(SB)/8, $0xa4506ceb90befffa
DATA constants<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), RODATA|NOPTR, $256
