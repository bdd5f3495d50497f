// What C programs ordinarily do. It prints what fails, and ends with how many things did.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static int failed;

#define WANT(x)                                               \
	do {                                                  \
		errno = 0;                                    \
		if (!(x)) {                                   \
			printf("%s: %s\n", #x, strerror(errno)); \
			failed++;                             \
		}                                             \
	} while (0)

static void *count(void *arg)
{
	__atomic_add_fetch((int *)arg, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void nothing(int s) { (void)s; }

static void processes(char *self)
{
	int status = 0, n = 0;
	pthread_t t[8];
	pid_t p = fork();
	if (p == 0)
		_exit(3);
	WANT(p > 0 && waitpid(p, &status, 0) == p && WEXITSTATUS(status) == 3);
	if ((p = vfork()) == 0)
		_exit(4);
	WANT(p > 0 && waitpid(p, &status, 0) == p && WEXITSTATUS(status) == 4);
	char *argv[] = {self, "child", NULL}, *envp[] = {NULL};
	WANT(posix_spawn(&p, self, NULL, NULL, argv, envp) == 0 && waitpid(p, &status, 0) == p && WEXITSTATUS(status) == 5);
	for (int i = 0; i < 8; i++)
		WANT(pthread_create(&t[i], NULL, count, &n) == 0);
	for (int i = 0; i < 8; i++)
		pthread_join(t[i], NULL);
	WANT(n == 8);
	cpu_set_t cpus;
	WANT(sched_getaffinity(0, sizeof cpus, &cpus) == 0 && sched_setaffinity(0, sizeof cpus, &cpus) == 0 && sched_yield() == 0);
	WANT(setpriority(PRIO_PROCESS, 0, 5) == 0 && getpriority(PRIO_PROCESS, 0) == 5);
	WANT(prctl(PR_SET_NAME, "ordinary") == 0);
	WANT(setuid(getuid()) == 0 && setgid(getgid()) == 0);
	struct rlimit l;
	struct rusage u;
	WANT(getrlimit(RLIMIT_NOFILE, &l) == 0 && setrlimit(RLIMIT_NOFILE, &l) == 0 && getrusage(RUSAGE_SELF, &u) == 0);
}

static void files(void)
{
	struct stat st;
	struct statvfs fs;
	char buf[64];
	int fd = open("/tmp/f", O_RDWR | O_CREAT | O_TRUNC, 0600);
	WANT(fd >= 0 && write(fd, "hello", 5) == 5 && pread(fd, buf, 5, 0) == 5 && fsync(fd) == 0 && ftruncate(fd, 100) == 0);
	WANT(posix_fallocate(fd, 0, 4096) == 0 && fstat(fd, &st) == 0 && st.st_size == 4096);
	WANT(flock(fd, 2) == 0 && fchmod(fd, 0644) == 0 && futimens(fd, NULL) == 0);
	char *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	WANT(m != MAP_FAILED && m[0] == 'h' && msync(m, 4096, MS_SYNC) == 0 && munmap(m, 4096) == 0);
	int to = open("/tmp/g", O_RDWR | O_CREAT | O_TRUNC, 0600);
	WANT(copy_file_range(fd, NULL, to, NULL, 5, 0) >= 0 || errno == EINVAL);
	close(to);
	WANT(mkdir("/tmp/d", 0700) == 0 && rename("/tmp/f", "/tmp/d/f") == 0 && link("/tmp/d/f", "/tmp/d/g") == 0 && symlink("g", "/tmp/d/h") == 0);
	WANT(readlink("/tmp/d/h", buf, sizeof buf) == 1 && access("/tmp/d/h", R_OK) == 0 && chmod("/tmp/d/f", 0600) == 0);
	WANT(unlink("/tmp/d/f") == 0 && unlink("/tmp/d/g") == 0 && unlink("/tmp/d/h") == 0 && rmdir("/tmp/d") == 0);
	WANT(mkfifo("/tmp/fifo", 0600) == 0 && statvfs("/tmp", &fs) == 0);
	WANT(getxattr("/tmp/g", "user.x", buf, sizeof buf) < 0 && errno != ENOSYS && errno != EPERM);
	int in = inotify_init1(IN_CLOEXEC);
	WANT(in >= 0 && inotify_add_watch(in, "/tmp", IN_CREATE) >= 0);
	close(in);
	close(fd);
}

static void memory(void)
{
	char *m = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	WANT(m != MAP_FAILED && madvise(m, 1 << 20, MADV_DONTNEED) == 0 && mlock(m, 4096) == 0 && munlock(m, 4096) == 0);
	WANT(mprotect(m, 1 << 20, PROT_READ | PROT_EXEC) == 0); // just-in-time compilers
	WANT((m = mremap(m, 1 << 20, 2 << 20, MREMAP_MAYMOVE)) != MAP_FAILED);
	int fd = memfd_create("x", MFD_CLOEXEC);
	WANT(fd >= 0 && ftruncate(fd, 4096) == 0);
	close(fd);
	int id = shmget(IPC_PRIVATE, 4096, 0600);
	void *at = id < 0 ? (void *)-1 : shmat(id, NULL, 0);
	WANT(at != (void *)-1 && shmdt(at) == 0 && shmctl(id, IPC_RMID, NULL) == 0);
	sem_t *sem = sem_open("/x", O_CREAT, 0600, 1);
	WANT(sem != SEM_FAILED && sem_wait(sem) == 0 && sem_post(sem) == 0 && sem_close(sem) == 0);
	free(malloc(64 << 20));
}

static void waiting(void)
{
	struct epoll_event e = {.events = EPOLLIN}, got;
	struct timespec ts = {0, 1000000};
	struct itimerspec its = {{0, 0}, {0, 1000000}};
	int fds[2], ep = epoll_create1(EPOLL_CLOEXEC), ev = eventfd(1, EFD_CLOEXEC), tm = timerfd_create(CLOCK_MONOTONIC, 0);
	WANT(pipe2(fds, O_CLOEXEC) == 0 && ep >= 0 && ev >= 0 && tm >= 0);
	WANT(epoll_ctl(ep, EPOLL_CTL_ADD, ev, &e) == 0 && epoll_wait(ep, &got, 1, 1000) == 1);
	uint64_t n;
	WANT(timerfd_settime(tm, 0, &its, NULL) == 0 && read(tm, &n, 8) == 8);
	WANT(nanosleep(&ts, NULL) == 0 && clock_gettime(CLOCK_REALTIME, &ts) == 0);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	WANT(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	int sf = signalfd(-1, &set, SFD_CLOEXEC);
	struct signalfd_siginfo si;
	WANT(sf >= 0 && kill(getpid(), SIGUSR1) == 0 && read(sf, &si, sizeof si) == sizeof si);
	signal(SIGALRM, nothing);
	alarm(1);
	WANT(pause() == -1 && errno == EINTR);
	timer_t t;
	WANT(timer_create(CLOCK_MONOTONIC, NULL, &t) == 0 && timer_delete(t) == 0);
}

static void network(void)
{
	struct addrinfo *ai = NULL, hints = {.ai_socktype = SOCK_STREAM};
	struct ifaddrs *ifs = NULL;
	WANT(getaddrinfo("localhost", "80", &hints, &ai) == 0 && ai != NULL);
	WANT(getifaddrs(&ifs) == 0 && ifs != NULL);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof a;
	int one = 1, l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), c = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP), u = socket(AF_INET6, SOCK_DGRAM, 0), fds[2];
	WANT(l >= 0 && c >= 0 && u >= 0 && setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
	WANT(bind(l, (struct sockaddr *)&a, sizeof a) == 0 && listen(l, 1) == 0 && getsockname(l, (struct sockaddr *)&a, &len) == 0);
	WANT(connect(c, (struct sockaddr *)&a, sizeof a) == 0 && accept(l, NULL, NULL) >= 0 && send(c, "x", 1, MSG_NOSIGNAL) == 1);
	WANT(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0 && write(fds[0], "x", 1) == 1);
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "child") == 0)
		return 5;
	processes(argv[0]);
	files();
	memory();
	waiting();
	network();
	printf("failed: %d\n", failed);
	return failed != 0;
}
