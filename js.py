import torch
from torch import nn
class M(nn.Module):
    def __init__(self):
        super().__init__(); self.register_buffer("h",torch.zeros(1,2)); self.n=0; self.l=[1]
        self.sub=nn.Linear(2,2)
    def forward(self,x):
        self.h=self.h+x; self.n+=1; self.l.append(2)
        return self.h*self.n
j=torch.jit.script(M())
print([a for a in dir(j._c) if not a.startswith("__")])
print([a for a in dir(j._c._type()) if not a.startswith("__")])
print(vars(j).keys(), type(j).__mro__, type(j).__module__)
print(list(j._buffers.items()))
j(torch.ones(1,2)); print(j.n, j.l, j._c.getattr("n"))
